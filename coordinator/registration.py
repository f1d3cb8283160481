"""Who may become a member: a stage server that says what it is, and that answers at the address it gives."""

from coordinator.cluster import Member
from coordinator.links import StageLink
from llmpq.address import split_address
from llmpq.errors import InvalidInputError, MeshError, UnavailableError
from llmpq.schemes import SCHEMES

#: Kinds of devices that are planned for.
_KINDS = ("cpu", "cuda")
#: Bytes of an activation: of 16-bit and 32-bit floats.
_ACTIVATION_BYTES = (2, 4)


def check_registration(member: Member) -> None:
    """Refuses a registration that no stage server can mean.

    Raises:
        InvalidInputError: Names the field and what it may be.
    """
    device = member.description
    if not member.device_id:
        raise _wrong("device_id", "is empty")
    split_address(member.address, "registration.address")
    if device.kind not in _KINDS:
        raise _wrong("description.kind", f"is '{device.kind}'; there are {', '.join(_KINDS)}")
    if not any(scheme in SCHEMES for scheme in device.schemes):
        raise _wrong("description.schemes", f"has no scheme that is known; there are {', '.join(SCHEMES)}")
    if device.activation_bytes not in _ACTIVATION_BYTES:
        raise _wrong("description.activation_bytes", f"is {device.activation_bytes}; there are 2 and 4")


async def confirm_address(member: Member) -> None:
    """Calls a stage back, so that an address at which nobody or another answers is known before work depends on it.

    Raises:
        UnavailableError: Says which address, and what to do.
    """
    try:
        async with StageLink.opened(member) as stage:
            found = await stage.device_id()
        problem = f"device '{found}' answers there" if found != member.device_id else ""
    except MeshError as error:
        problem = error.message
    if problem:
        raise UnavailableError(
            f"The coordinator does not reach device '{member.device_id}' at {member.address}. Start its stage "
            f"server with --advertise HOST:PORT, the address at which others reach it. ({problem})",
            subject=member.address,
        )


def _wrong(field: str, problem: str) -> InvalidInputError:
    return InvalidInputError(f"registration.{field} {problem}.", subject=f"registration.{field}")
