"""Frames of any size: larger ones are cut by rows when they are sent, and put together when they are received.

What the messages of a cut frame look like is said in activation_service.proto.
"""

from collections.abc import Iterator

import numpy as np

from llmpq.errors import InvalidInputError
from llmpq.frame_message import read_message, write_message
from llmpq.frames import MAX_FRAME_BYTES, DataType, Frame, encode_frame, frame_of, header_of, invalid_frame
from llmpq.v1 import activation_service_pb2 as pb

#: Payload of a message of a frame that is cut, as far as rows are not longer: one message is encoded while another is
#: on its way.
CHUNK_BYTES = 2**20


def messages_of(frame: Frame) -> Iterator[bytes]:
    """The messages that a frame is sent as, in order; each is made when it is asked for."""
    if len(frame.payload) <= CHUNK_BYTES:
        yield encode_frame(frame)
        return
    payload = memoryview(frame.payload)
    num_rows = frame.dimensions[0]
    row_bytes = frame.data_type.payload_bytes(frame.dimensions[1:])
    step = max(CHUNK_BYTES // row_bytes, 1)
    header = header_of(frame)
    for first_row in range(0, num_rows, step):
        if first_row:
            header = pb.ForwardRequest(deployment_id=frame.deployment_id, frame_id=frame.frame_id, first_row=first_row)
        header.has_more = first_row + step < num_rows
        yield write_message(header, payload[first_row * row_bytes : (first_row + step) * row_bytes])


class FrameAssembler:
    """Makes frames of the messages of one stream."""

    def __init__(self) -> None:
        self._begun: _CutFrame | None = None

    def take(self, raw: bytes) -> Frame | None:
        """The frame that a message completes, if it does. The payload of a single message is a view into it.

        Raises:
            InvalidInputError: Not a message of a frame, one that contradicts itself, or not the one that has to follow.
            CorruptDataError: The payload does not match its checksum.
        """
        header, payload = read_message(raw)
        if self._begun is None and not header.first_row and not header.has_more:
            return frame_of(header, payload)
        if self._begun is None:
            self._begun = _CutFrame(header)
        self._begun.add(header, payload)
        if header.has_more:
            return None
        frame, self._begun = self._begun.finished(), None
        return frame

    def end(self) -> None:
        """Takes the end of the stream; raises InvalidInputError if that is in the middle of a frame."""
        if self._begun is not None:
            raise self._begun.refusal("the stream ended")


class _CutFrame:
    """A frame whose rows come in several messages, and its buffer.

    Args:
        header: Of the first message.

    Raises:
        InvalidInputError: It is not the first message of a frame, or says that the frame is too large.
    """

    def __init__(self, header: pb.ForwardRequest) -> None:
        self._header = header
        self._num_rows = 0
        self._row_bytes = _row_bytes(header)
        if self._row_bytes * header.dimensions[0] > MAX_FRAME_BYTES:
            raise invalid_frame(header.frame_id, f"shape {tuple(header.dimensions)} is over {MAX_FRAME_BYTES:,} bytes")
        # Memory that is not written to is not taken: whoever announces much and sends little costs nothing.
        self._buffer = np.empty(self._row_bytes * header.dimensions[0], dtype=np.uint8).data

    def add(self, header: pb.ForwardRequest, payload: memoryview) -> None:
        """Takes the rows of the next message; raises InvalidInputError if they are not those that have to follow."""
        own = self._header
        if (header.deployment_id, header.frame_id) != (own.deployment_id, own.frame_id):
            raise self.refusal(f"frame {header.frame_id} of deployment '{header.deployment_id}' came")
        if header.first_row != self._num_rows:
            raise self.refusal(f"row {header.first_row} came")
        num_rows, rest = divmod(len(payload), self._row_bytes)
        if rest or not num_rows or self._num_rows + num_rows > own.dimensions[0]:
            raise self.refusal(f"{len(payload)} bytes came, which are no rows of {self._row_bytes} that are missing")
        at = self._num_rows * self._row_bytes
        self._buffer[at : at + len(payload)] = payload
        self._num_rows += num_rows

    def finished(self) -> Frame:
        """The frame; raises InvalidInputError if rows are missing, or if the frame contradicts itself."""
        if self._num_rows < self._header.dimensions[0]:
            raise self.refusal("no more were to come")
        return frame_of(self._header, self._buffer)

    def refusal(self, what: str) -> InvalidInputError:
        """The error of what came instead of the next rows."""
        where = f"after {self._num_rows} of {self._header.dimensions[0]} rows"
        return invalid_frame(self._header.frame_id, f"{where} {what}")


def _row_bytes(header: pb.ForwardRequest) -> int:
    """Bytes of a row of the frame that a message begins."""
    if header.first_row:
        raise invalid_frame(header.frame_id, f"row {header.first_row} came without those before")
    try:
        row_bytes = DataType(header.data_type).payload_bytes(header.dimensions[1:])
    except ValueError as error:
        raise invalid_frame(header.frame_id, f"unknown enum value: {error}") from error
    if not header.dimensions or not row_bytes:
        raise invalid_frame(header.frame_id, f"shape {tuple(header.dimensions)} cannot be cut into rows")
    return row_bytes
