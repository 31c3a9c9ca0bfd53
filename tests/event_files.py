"""Reads TensorBoard's event files back."""

import struct

from tensorboardX.proto.event_pb2 import Event, SessionLog


def events(folder):
    """Reads event files in the order of their names; a record is its length, a checksum, its bytes, a checksum."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def points(folder):
    """The curves that TensorBoard draws: a start drops the points at its step and after it."""
    found = []
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            found = [point for point in found if point[1] < event.step]
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return found
