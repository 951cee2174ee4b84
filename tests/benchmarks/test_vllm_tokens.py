"""evidence/benchmarks/vllm_tokens.py, without vLLM."""

from __future__ import annotations

import pytest

from evidence.benchmarks import vllm_tokens


@pytest.mark.parametrize("rounds", ["0", "1"])
def test_rounds_without_quartiles_are_refused_before_anything_is_measured(
    rounds: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["vllm_tokens.py", "--rounds", rounds])
    monkeypatch.setattr(vllm_tokens, "seconds_of_rounds", lambda *args, **kwargs: pytest.fail("it measured"))
    with pytest.raises(SystemExit) as stopped:
        vllm_tokens.main()
    assert stopped.value.code == 2
    assert f"argument --rounds: must be at least 2, got {rounds}" in capsys.readouterr().err
