"""What quantizing each layer of a model costs in quality, by one of several indicators."""

from collections.abc import Iterator

from llmpq.errors import InvalidInputError
from llmpq.rating import RatingProgress, RatingRequest
from stage_server.device import ComputeDevice
from stage_server.loader import ModelLoader
from stage_server.sensitivity.hessian import rate_by_hessian
from stage_server.sensitivity.loss import rate_by_loss
from stage_server.sensitivity.variance import rate_by_variance

_INDICATORS = {"hessian": rate_by_hessian, "variance": rate_by_variance, "loss": rate_by_loss}


def rate_layers(loader: ModelLoader, device: ComputeDevice, request: RatingRequest) -> Iterator[RatingProgress]:
    """Runs samples through a model, a layer at a time; yields how far it is, and ratings once they are known.

    Args:
        loader: Of the model.
        device: Where to compute.
        request: What to rate, how, and on which samples.

    Raises:
        InvalidInputError: An indicator that no stage measures, a rounding that does not exist, or samples that cannot
            be run.
    """
    if request.effective_indicator not in _INDICATORS:
        raise InvalidInputError(
            f"No stage measures indicator '{request.indicator}': there are {', '.join(_INDICATORS)}.",
            reason="UNKNOWN_INDICATOR",
            subject="indicator",
        )
    return _INDICATORS[request.effective_indicator](loader, device, request)
