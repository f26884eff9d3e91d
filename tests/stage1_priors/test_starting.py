"""A start that fails is told in one line."""

import pydantic
import pytest

from shared.errors import DataError
from stage1_priors.starting import reason_of, starting


class Sized(pydantic.BaseModel):
    """A stand-in for an engine's own settings."""

    length: int = 0

    @pydantic.field_validator("length")
    @classmethod
    def _fits(cls, length):
        if length > 9:
            raise ValueError(f"length {length} is greater than 9. That would be wrong.")
        return length


def test_a_setting_the_engine_refuses(capsys):
    with pytest.raises(DataError) as caught, starting("engine.kind=vllm did not start", quiet=False):
        Sized(length=10)
    told = "ValidationError: Value error, length 10 is greater than 9. That would be wrong."
    assert str(caught.value) == f"engine.kind=vllm did not start: {told}"
    assert "Traceback" in capsys.readouterr().err


def test_the_innermost_cause_is_told():
    with pytest.raises(DataError, match=r"^it failed: MemoryError: 8 GiB are too many$") as caught:
        with starting("it failed", quiet=True):
            try:
                raise MemoryError("\n8 GiB are too many\nsee the handbook")
            except MemoryError as error:
                raise RuntimeError("the core did not start") from error
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert reason_of(ValueError()) == "ValueError: it said nothing"


def test_what_the_user_can_mend_and_ctrl_c_pass(capsys):
    for error in (DataError("no such folder"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, starting("it failed", quiet=False):
            raise error
        assert caught.value is error
    assert capsys.readouterr().err == ""
