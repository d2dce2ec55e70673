"""From a job dict to a FLARE job: every component, the job itself and this package inside.

`app/config/vltune_job.json` says what to train, and site paths are nowhere. With code, the export
is self-contained: `app/custom/vltune` is a copy of this package (sites must allow jobs that bring
code, BYOC). Without, server and sites have the package installed and allow its classes.
"""

import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nvflare.apis.analytix import ANALYTIC_EVENT_TYPE
from nvflare.app_common.widgets.convert_to_fed_event import ConvertToFedEvent
from nvflare.app_opt.tracking.tb.tb_receiver import TBAnalyticsReceiver
from nvflare.job_config.api import FedJob
from nvflare.job_config.defs import FilterType
from nvflare.recipe.spec import Recipe

import vltune
from vltune.code_identity import code_files, code_hash
from vltune.conditions import class_list_hash
from vltune.config import ConfigError, from_mapping, to_mapping
from vltune.doctor_job import VERSIONS_FILE
from vltune.doctor_versions import installed_versions
from vltune.flare.aggregator import ValidatingAggregator, lora_aggregation
from vltune.flare.controller import FederationController, RunConfig
from vltune.flare.exchange import TASKS
from vltune.flare.executor import JOB_FILE, ParticipantExecutor
from vltune.flare.federation import FederationConfig
from vltune.flare.filters import SharedOnlyFilter
from vltune.flare.persistor import AdapterPersistor

PACKAGE = "vltune"
RESUME_FILE = "resume_adapter.safetensors"
HASH_SHOWN = 16
_SITE_KEYS_NOT_SENT = ("federation", "participant", "run")


def site_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """What sites are told: all but the server's business, and how many rounds there are."""
    told = {key: value for key, value in job.items() if key not in _SITE_KEYS_NOT_SENT}
    return told | {"num_rounds": job["federation"]["rounds"]}


def job_facts(job: Mapping[str, Any]) -> dict[str, str]:
    """How facts of each site's handshake must begin: VLTune's version and code, the class list.

    Not the whole hash: FLARE would warn of a secret in the exported job.
    """
    names = job.get("classnames")
    classes = {"class_list": class_list_hash(names)[:HASH_SHOWN]} if names else {}
    return {"vltune": vltune.__version__, "code": code_hash(), **classes}


class FederatedRecipe(Recipe):
    """A run of any method, described by a job dict.

    Args:
        job: `name`, `method`, `seed`, `participant` (dotted path of the builder), `federation`, and
            whatever the method's builder reads. JSON-able.
        resume: What an earlier run left: `run_id`, `start_round`, `best`.
        resume_adapter: The global adapter after `start_round` rounds.
        with_code: Whether the job brings this package (docs/deploy.md).

    Raises:
        ConfigError: A key is missing, or `federation` is wrong.
    """

    def __init__(
        self,
        job: Mapping[str, Any],
        resume: Mapping[str, Any] | None = None,
        resume_adapter: Path | None = None,
        *,
        with_code: bool = True,
    ) -> None:
        missing = [
            key for key in ("name", "method", "seed", "participant", "federation") if key not in job
        ]
        if missing:
            raise ConfigError(f"the job: missing key {', '.join(missing)}")
        if (resume is None) != (resume_adapter is None):
            raise ConfigError("a resumed run needs both its record and its adapter")
        self.federation = from_mapping(FederationConfig, job["federation"], "the job's federation")
        self.aggregation = job.get("aggregation")
        lora_aggregation(self.aggregation, self.federation.weight_by)  # a wrong key ends here
        self.run_config = RunConfig(
            name=job["name"],
            method=job["method"],
            seed=job["seed"],
            facts=job_facts(job),
            **(resume or {}),
        )
        # The copies live until the export has copied them on.
        self._folder = Path(tempfile.mkdtemp(prefix="vltune-export-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        fed_job = FedJob(name=job["name"], min_clients=self.federation.min_sites)
        self._add_server(fed_job, resume_adapter)
        self._add_sites(fed_job, job)
        fed_job.set_app_packages([PACKAGE])  # else FLARE copies modules that it sees imported
        if with_code:
            self._add_code(fed_job)
        super().__init__(fed_job)

    def _add_server(self, fed_job: FedJob, resume_adapter: Path | None) -> None:
        run, federation = asdict(self.run_config), to_mapping(self.federation)
        fed_job.to_server(FederationController(federation=federation, run=run), id="controller")
        fed_job.to_server(
            ValidatingAggregator(
                self.federation.weight_by,
                self.federation.max_update_norm,
                self.aggregation,
                to_mapping(self.federation.robust),
            ),
            id="aggregator",
        )
        facts = {"name": self.run_config.name, "method": self.run_config.method}
        persistor = AdapterPersistor(RESUME_FILE if resume_adapter else "", facts)
        fed_job.to_server(persistor, id="persistor")
        if self.federation.tensorboard:
            fed_job.to_server(TBAnalyticsReceiver(), id="tensorboard")
        fed_job.to_server({"server": {"task_request_interval": self.federation.poll_seconds}})
        if resume_adapter:
            copy = self._folder / RESUME_FILE
            shutil.copyfile(resume_adapter, copy)
            fed_job.add_file_to_server(str(copy), app_folder_type="config")

    def _add_sites(self, fed_job: FedJob, job: Mapping[str, Any]) -> None:
        executor = ParticipantExecutor(
            job["participant"],
            stream_metrics=self.federation.tensorboard,
            examine=self.federation.doctor,
        )
        fed_job.to_clients(executor, id="executor", tasks=list(TASKS))
        for task in TASKS:  # FLARE knows no wildcard here: "*" would filter nothing
            gate = SharedOnlyFilter()
            fed_job.to_clients(gate, tasks=[task], filter_type=FilterType.TASK_RESULT)
        fed_job.to_clients({"default_task_fetch_interval": self.federation.poll_seconds})
        if self.federation.tensorboard:
            fed_job.to_clients(ConvertToFedEvent([ANALYTIC_EVENT_TYPE]), id="metrics_to_server")
        path = self._folder / JOB_FILE
        path.write_text(
            json.dumps(site_job(job), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        )
        fed_job.add_file_to_clients(str(path), app_folder_type="config")
        made_with = {
            "versions": installed_versions(),
            "code": code_hash(),
            "files": code_files(),
        }
        path = self._folder / VERSIONS_FILE
        path.write_text(json.dumps(made_with, indent=2) + "\n")
        fed_job.add_file_to_clients(str(path), app_folder_type="config")

    def _add_code(self, fed_job: FedJob) -> None:
        # A whole copy: FLARE's import scanner would miss __init__.py and data files.
        copy = self._folder / PACKAGE
        source = Path(vltune.__file__).parent
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        for add in (fed_job.add_file_to_server, fed_job.add_file_to_clients):
            add(str(copy), dest_dir=PACKAGE, app_folder_type="custom")
