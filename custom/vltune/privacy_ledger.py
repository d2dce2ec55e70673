"""What a site has spent of its privacy in one run, on its own disk.

The accountant is Opacus' (Renyi differential privacy of the sampled Gaussian mechanism, Mironov et
al. 2019, arXiv 1908.10530). A charge is written before anything that it pays for is made, so that a
crash can only count too much.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vltune.files import write_bytes_atomic
from vltune.privacy import PrivacyConfig, PrivacyError

LEDGER_FILE = "privacy_ledger.json"
ORDERS = (1.01, 1.05, *(1 + x / 10 for x in range(1, 100)), *range(11, 64), 64, 128, 256, 512, 1024)
"""Renyi orders over which epsilon is the smallest."""


class Charge(NamedTuple):
    """Some uses of the sampled Gaussian mechanism.

    Attributes:
        noise_multiplier: z.
        sample_rate: Chance of a record to be in one of them; 1 where all are.
        steps: How many.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int


class PrivacyLedger:
    """The charges of one site in one run.

    Args:
        path: The file; made with the first charge.
        config: The job's `privacy`, not of level none.

    Raises:
        PrivacyError: The file is damaged: what was spent is not known.
    """

    def __init__(self, path: Path, config: PrivacyConfig) -> None:
        self._path = path
        self._noise_multiplier, _, self.delta = config.bounds
        self._max_epsilon = config.max_epsilon
        self._charges = _read(path)

    @property
    def epsilon(self) -> float:
        """Spent so far at the job's delta."""
        return epsilon_of(self._charges, self.delta)

    def charge(self, sample_rate: float, steps: int) -> float:
        """Write down what is about to be spent; returns epsilon with it.

        Raises:
            PrivacyError: It would exceed `max_epsilon`; nothing was charged.
        """
        charges = [*self._charges, Charge(self._noise_multiplier, sample_rate, steps)]
        epsilon = epsilon_of(charges, self.delta)
        if self._max_epsilon is not None and epsilon > self._max_epsilon:
            raise PrivacyError(
                f"the privacy budget is spent: epsilon would be {epsilon:.4g}, privacy.max_epsilon "
                f"is {self._max_epsilon:.4g}. Ask for fewer rounds or more noise."
            )
        content = {"charges": [charge._asdict() for charge in charges]}
        write_bytes_atomic(self._path, json.dumps(content).encode(), private=True)
        self._charges = charges
        return epsilon


def epsilon_of(charges: Sequence[Charge], delta: float) -> float:
    """Epsilon of all charges together at `delta`; 0 for none.

    Raises:
        PrivacyError: Opacus is not installed.
    """
    if not charges:
        return 0.0
    try:
        from opacus.accountants import RDPAccountant
    except ImportError as error:
        raise PrivacyError(
            "differential privacy needs Opacus for its accountant: pip install vltune[privacy]"
        ) from error
    accountant = RDPAccountant()
    accountant.history = [tuple(charge) for charge in charges]
    with warnings.catch_warnings():
        # The best order is at an end of the list: the bound holds, a longer list would tighten it.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        return float(accountant.get_epsilon(delta, alphas=list(ORDERS)))


def _read(path: Path) -> list[Charge]:
    if not path.exists():
        return []
    try:
        charges = [Charge(**entry) for entry in json.loads(path.read_text())["charges"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PrivacyError(
            f"{path}: cannot be read, so that it is not known what was spent. Begin a new run."
        ) from error
    return charges
