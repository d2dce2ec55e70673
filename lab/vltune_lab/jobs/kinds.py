"""The jobs of this repository: what `jobs/<job>/job.py` and the lab's commands run."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vltune.algorithms.fedmpt import FedMPTConfig
from vltune.algorithms.multilabel_job import MultiLabelJob
from vltune.config import ConfigError, from_mapping, from_part
from vltune_lab.jobs.global_test import finish
from vltune_lab.jobs.resolve import Job, JobKind
from vltune_lab.report.html import build_report
from vltune_lab.report.summary import write_summary

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[3]
FEDMPT_YAML = REPOSITORY / "jobs" / "fedmpt" / "fedmpt.yaml"
FEDVLM_YAML = REPOSITORY / "jobs" / "fedvlm" / "fedvlm.yaml"
FEDUMM_YAML = REPOSITORY / "jobs" / "fedumm" / "fedumm.yaml"


EVERY_JOB = {"name", "method", "seed", "participant", "federation", "privacy"}


def check_fedmpt(job: Job) -> None:
    """Read the job as a site will: a wrong key ends here and not at every site."""
    _refuse_unknown(job, {"model"}, MultiLabelJob)
    from_mapping(FedMPTConfig, job.get("model", {}), f"{FEDMPT_YAML}: model")
    from_part(MultiLabelJob, job, str(FEDMPT_YAML))


def check_fedvlm(job: Job) -> None:
    """Read the job as a site will."""
    # Behind these is transformers, for which the other jobs should not wait.
    from vltune.algorithms.fedvlm import FedVLMConfig
    from vltune.algorithms.lora_job import LoraJob

    _refuse_unknown(job, set(), FedVLMConfig, LoraJob)
    known = ("accuracy", "token_f1", "rouge_l", "preference_accuracy", "soft_accuracy")
    _check_metric(job, known, FEDVLM_YAML)
    from_part(FedVLMConfig, job, str(FEDVLM_YAML))
    from_part(LoraJob, job, str(FEDVLM_YAML))


def check_fedumm(job: Job) -> None:
    """Read the job as a site will."""
    from vltune.algorithms.fedumm import FedUMMConfig, read_job
    from vltune.algorithms.lora_job import LoraJob

    _refuse_unknown(job, set(), FedUMMConfig, LoraJob)
    metric = _check_metric(job, ("vqa_accuracy", "geneval"), FEDUMM_YAML)
    config, _, _ = read_job(job)
    if metric == "geneval" and config.judge is None:
        raise ConfigError(
            f"{FEDUMM_YAML}: federation.metric is geneval, but there is no judge. Add one, or take "
            "vqa_accuracy."
        )


def finish_with_report(
    run_folder: Path, job: Mapping[str, Any], summary: dict[str, Any]
) -> dict[str, Any]:
    """Write the report; every figure came from the sites."""
    write_summary(run_folder, summary)
    build_report(run_folder)
    return summary | {"artefacts": {**summary["artefacts"], "report": "report.html"}}


def finish_fedumm(run_folder: Path, job: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """Draw the job's samples with the global model of some rounds, then write the report."""
    from vltune_lab.jobs.drawing_samples import draw_samples

    write_summary(run_folder, summary)  # whatever becomes of the pictures
    try:
        draw_samples(run_folder, job)
    except (ValueError, RuntimeError, OSError) as error:
        log.warning("no pictures in the report: %s", error)
    return finish_with_report(run_folder, job, summary)


def _check_metric(job: Job, known: tuple[str, ...], source: Path) -> str:
    """The federation's metric, which must be one that this job's sites send."""
    metric = str(job["federation"].get("metric", "mAP"))
    if metric not in known:
        raise ConfigError(
            f"{source}: federation.metric is {metric}, which no site of this job sends; take "
            f"{', '.join(known[:-1])} or {known[-1]}"
        )
    return metric


def _refuse_unknown(job: Job, others: set[str], *classes: type[Any]) -> None:
    """A misspelt key would leave its value at the default and say nothing."""
    known = EVERY_JOB | others | {key for cls in classes for key in cls.__dataclass_fields__}
    known -= {"num_rounds"}  # what sites are told of federation.rounds
    unknown = sorted(set(job) - known)
    if unknown:
        raise ConfigError(
            f"the job {job['name']!r}: unknown key {', '.join(unknown)}; known: "
            f"{', '.join(sorted(known))}."
        )


FEDMPT = JobKind(method="FedMPT", yaml=FEDMPT_YAML, check=check_fedmpt, finish=finish)
FEDVLM = JobKind(method="FedVLM", yaml=FEDVLM_YAML, check=check_fedvlm, finish=finish_with_report)
FEDUMM = JobKind(method="FedUMM", yaml=FEDUMM_YAML, check=check_fedumm, finish=finish_fedumm)
