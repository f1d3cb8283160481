"""Messages of the data plane: valid protobuf with the payload spliced in.

`ForwardRequest.payload` has the highest field number, so a message is the serialized header followed by tag, length
and the payload's own bytes. Writing copies the payload once, into the message; reading does not copy it at all. An
ordinary generated stub reads and writes the same bytes.
"""

import zlib

from google.protobuf.message import DecodeError

from llmpq.errors import CorruptDataError, InvalidInputError
from llmpq.v1 import activation_service_pb2 as pb

_PAYLOAD_TAG = b"\xc2\x3e"  # field 1000, length-delimited
_VARINT, _LENGTH_DELIMITED = 0, 2


def write_message(header: pb.ForwardRequest, payload: bytes | memoryview) -> bytes:
    """Serializes a message; `header` has everything but payload and checksum, and is given the latter."""
    header.payload_crc32 = zlib.crc32(payload)
    head = header.SerializeToString()
    if not len(payload):  # protobuf leaves an empty last field out
        return head
    return b"".join((head, _PAYLOAD_TAG, _varint(len(payload)), payload))


def read_message(raw: bytes) -> tuple[pb.ForwardRequest, memoryview]:
    """Header of a message, and its payload as a view into `raw`.

    Raises:
        InvalidInputError: Not a message of the data plane.
        CorruptDataError: The payload does not match its checksum.
    """
    header, payload = _split(raw)
    if zlib.crc32(payload) != header.payload_crc32:
        raise CorruptDataError(
            f"Frame {header.frame_id}: the payload does not match its checksum; suspect network or memory.",
            subject=f"frame {header.frame_id}",
        )
    return header, payload


def _split(raw: bytes) -> tuple[pb.ForwardRequest, memoryview]:
    """Header and payload of a message. A payload that is not the last field is found by the generated parser."""
    try:
        start = _payload_start(raw)
        if start is None:
            message = pb.ForwardRequest.FromString(raw)
            return message, memoryview(message.payload)
        tag_at, payload_at = start
        return pb.ForwardRequest.FromString(raw[:tag_at]), memoryview(raw)[payload_at:]
    except (DecodeError, IndexError) as error:
        raise InvalidInputError("A message on Forward is not a frame.", subject="frame") from error


def _payload_start(raw: bytes) -> tuple[int, int] | None:
    """Offsets of the payload's tag and first byte, if the payload is the last field of the message."""
    at = 0
    while at < len(raw):
        tag_at = at
        tag, at = _read_varint(raw, at)
        if tag & 7 == _LENGTH_DELIMITED:
            length, at = _read_varint(raw, at)
            if tag >> 3 == pb.ForwardRequest.PAYLOAD_FIELD_NUMBER:
                return (tag_at, at) if at + length == len(raw) else None
            at += length
        elif tag & 7 == _VARINT:
            _, at = _read_varint(raw, at)
        else:
            return None
    return None


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    """The varint at an offset, and the offset after it."""
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 the continuation bit
            return value, at
        shift += 7


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:  # noqa: PLR2004 seven bits a byte
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
