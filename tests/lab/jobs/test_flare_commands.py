from pathlib import Path

import pytest
from rich.console import Console

from vltune_lab.jobs.flare_commands import FlareCommands, data_of, envelope_of
from vltune_lab.jobs.poc_project import PocError


def test_the_answer_is_found_among_other_lines() -> None:
    text = 'Connecting ...\n{"data": {"job_id": "x"}}\n12\nbye\n'
    assert envelope_of(text) == {"data": {"job_id": "x"}}
    assert data_of(text) == {"job_id": "x"}
    assert envelope_of("nothing\n[1]\n") == {}
    assert data_of('{"data": null}') == {}


@pytest.mark.slow
def test_a_command_that_fails_is_told_as_typed_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    nvflare = FlareCommands(tmp_path / "none", Console())
    kit = tmp_path / "no kit"
    with pytest.raises(PocError, match=r"nvflare --format json job list .*exit status \d+: \w+"):
        nvflare("--format", "json", "job", "list", "--startup-kit", kit)
    assert f"$ nvflare --format json job list --startup-kit '{kit}'" in capsys.readouterr().out
    with pytest.raises(PocError, match=r"nvflare poc stop: no end within 0\.01 s"):
        nvflare("poc", "stop", seconds=0.01)
