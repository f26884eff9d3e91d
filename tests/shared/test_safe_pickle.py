"""Pickles are read without running anything."""

import builtins
import os
import pickle
import struct

import pytest

from shared.errors import DataError
from shared.safe_pickle import loads_plain
from tests.shared.refer_fixture import python2_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
PLAIN = [{"a": 1, "b": [1.5, True, None, -(2**70), 2**40], "c": ("x", "é", "日本"), 3: {"d": []}}, []]


class Calls:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_containers_round_trip(protocol):
    assert loads_plain(pickle.dumps(PLAIN, protocol=protocol), "f") == PLAIN


@pytest.mark.parametrize("protocol", [4, 5])
def test_sets_and_bytes_round_trip(protocol):
    value = [{1, 2}, frozenset([3]), b"\x00\xff"]
    assert loads_plain(pickle.dumps(value, protocol=protocol), "f") == value


@pytest.mark.parametrize("encoding", ["utf-8", "latin1"])
def test_strings_of_python_2(encoding):
    value = [{"sent": "café on the left", "sent_id": 7}]
    assert loads_plain(python2_pickle(value, encoding), "f") == value


def test_protocol_0_byte_strings_of_python_2():
    assert loads_plain(b"(lp0\nS'caf\\xc3\\xa9'\np1\naI7\na.", "f") == ["café", 7]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("function", ["system", "eval", "exec", "getattr", "import"])
def test_no_call_is_made(tmp_path, protocol, nested, function):
    witness = tmp_path / "witness"
    touch = f"open({str(witness)!r}, 'w').close()"
    call = {
        "system": Calls(os.system, f"touch {witness}"),
        "eval": Calls(builtins.eval, touch),
        "exec": Calls(builtins.exec, touch),
        "getattr": Calls(builtins.getattr, "text", "upper"),
        "import": Calls(builtins.__import__, "os"),
    }[function]
    data = pickle.dumps([{"sentences": [(call,)]}] if nested else call, protocol=protocol)
    with pytest.raises(DataError, match="refused") as caught:
        loads_plain(data, "refs(unc).p")
    assert "refs(unc).p" in str(caught.value) and "\n" not in str(caught.value)
    assert not witness.exists()


def test_the_hostile_file_does_harm_to_the_unsafe_reader(tmp_path):
    """Otherwise the test above would prove nothing."""
    witness = tmp_path / "witness"
    pickle.loads(pickle.dumps(Calls(builtins.exec, f"open({str(witness)!r}, 'w').close()")))
    assert witness.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'true'\ntR.",  # GLOBAL, REDUCE
        b"(S'true'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'true'\no.",  # OBJ
        b"\x80\x02cbuiltins\nset\n)\x81.",  # NEWOBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",  # STACK_GLOBAL
        b"Psome-key\n.",  # PERSID
        b"\x80\x02U\x01kQ.",  # BINPERSID
    ],
    ids=["global", "inst", "obj", "newobj", "stack_global", "persid", "binpersid"],
)
def test_every_opcode_that_names_is_refused(data):
    with pytest.raises(DataError, match="f: refused"):
        loads_plain(data, "f")


def test_numpy_scalars_are_refused_by_name():
    import numpy as np

    with pytest.raises(DataError, match="numpy"):
        loads_plain(pickle.dumps([np.int64(1)]), "f")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_truncation_is_an_error(protocol):
    data = pickle.dumps(PLAIN, protocol=protocol)
    for end in range(len(data)):
        with pytest.raises(DataError, match="f: "):
            loads_plain(data[:end], "f")


@pytest.mark.parametrize(
    "data",
    [b"not a pickle", b"\x80\x63.", b"\x80\x02h\x05.", b"0.", b"\x80\x02\x8a\x04....", b"\x80\x02}K\x01K\x02a.",
     b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.", b"\x80\x05\x97."],
    ids=["text", "protocol", "memo", "empty stack", "torn long", "append to dict", "huge bytes", "out of band"],
)  # fmt: skip
def test_damage_is_a_data_error_of_one_line(data):
    with pytest.raises(DataError, match="f: ") as caught:
        loads_plain(data, "f")
    assert "\n" not in str(caught.value)
