"""From names to a planning problem."""

from llmpq.errors import InvalidInputError
from llmpq.plan import PlanningProblem
from llmpq.scenario import Scenario
from planner_svc.catalog.catalog import DEFAULT_KERNELS, Catalog, read_catalog, read_cluster
from planner_svc.catalog.clusters import ClusterSheet
from planner_svc.validation import check_requests


def resolve(scenario: Scenario) -> PlanningProblem:
    """The problem that a scenario names; all devices are used only if the options say so.

    Raises:
        NotFoundError: Something is not in the catalog.
        InvalidInputError: A document is malformed, a name is missing, or there is no work.
    """
    catalog = read_catalog(scenario.catalog_documents)
    cluster = _cluster(catalog, scenario)
    model = scenario.model_name or cluster.model
    if scenario.shape is None and not model:
        raise InvalidInputError("There is no model: name one, or give its shape.", subject="model")
    shape = scenario.shape or catalog.shape(model)
    workload = scenario.workload
    if scenario.lengths:
        if workload:
            raise InvalidInputError("Give a workload or a distribution of lengths, not both.", subject="lengths")
        check_requests(scenario.num_requests, "num_requests")
        workload = catalog.requests(scenario.lengths, scenario.num_requests, shape.max_positions)
    group_size = scenario.options.effective_group_size
    devices = catalog.profiles(cluster, shape, group_size, scenario.kernels or DEFAULT_KERNELS)
    return PlanningProblem(model, shape, devices, workload, (), scenario.options)


def _cluster(catalog: Catalog, scenario: Scenario) -> ClusterSheet:
    if scenario.cluster_document is not None:
        return read_cluster(scenario.cluster_document)
    if not scenario.cluster_name:
        raise InvalidInputError("There is no cluster: name one, or give its document.", subject="cluster")
    return catalog.cluster(scenario.cluster_name)
