"""Before round 0: do all sites mean the same model, classes and preprocessing?"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from vltune import __version__
from vltune.code_identity import code_hash
from vltune.flare.failure import shown
from vltune.flare.federation import FederationError
from vltune.parameters import SharedSpec, describe_difference
from vltune.participant import Handshake

SHOWN_HASH = 12
PARTIAL_FACTS = ("judge",)
"""Shown by the sites that use what they describe, and compared among those."""


@dataclass(frozen=True)
class RollCall:
    """Who takes part.

    Attributes:
        reference: The handshake of the agreeing sites, that of the first by name.
        sites: Agreeing sites, sorted.
        left_out: Site -> readable reason.
        num_examples: Agreeing site -> training images it announced.
    """

    reference: Handshake
    sites: tuple[str, ...]
    left_out: dict[str, str]
    num_examples: dict[str, int] = field(default_factory=dict)


def compare_sites(
    handshakes: Mapping[str, Handshake],
    failed: Mapping[str, str],
    min_sites: int,
    required: SharedSpec | None = None,
    facts: Mapping[str, str] | None = None,
) -> RollCall:
    """Keep the largest group of sites that agree in every point; name what the others differ in.

    Args:
        handshakes: Site -> what it showed.
        failed: Site -> why it showed nothing.
        min_sites: Fewest sites to go on with.
        required: Shared tensors of the adapter that the run continues from, if any.
        facts: How facts of each site must begin, such as the hash of the job's class list.

    Raises:
        FederationError: Two groups are equally large, or fewer than `min_sites` agree.
    """
    left_out = dict(failed)
    groups: dict[str, list[str]] = defaultdict(list)
    for site in sorted(handshakes):
        reason = _unusable(handshakes[site], required, facts or {})
        if reason:
            left_out[site] = shown(reason)
        else:
            groups[_fingerprint(handshakes[site])].append(site)
    if not groups:
        raise FederationError(f"no site can take part: {describe_sites(left_out)}")
    ordered = sorted(groups.values(), key=lambda names: (-len(names), names))
    _check_majority(ordered, handshakes)
    reference = handshakes[ordered[0][0]]
    for site in (site for names in ordered[1:] for site in names):
        difference = describe_handshakes(reference, handshakes[site])
        left_out[site] = shown(f"differs from the majority: {difference}")
    kept = ordered[0]
    partial: dict[str, str] = {}
    for name in PARTIAL_FACTS:
        kept, found, others = _agreeing(name, kept, handshakes)
        partial |= found
        left_out |= {site: shown(reason) for site, reason in others.items()}
    if len(kept) < min_sites:
        raise FederationError(
            f"{len(kept)} of {len(handshakes) + len(failed)} sites can take part, min_sites "
            f"is {min_sites}: {describe_sites(left_out)}"
        )
    reference = replace(handshakes[kept[0]], facts=handshakes[kept[0]].facts | partial)
    examples = {site: handshakes[site].num_examples for site in kept}
    return RollCall(reference, tuple(kept), left_out, examples)


def _agreeing(
    name: str, sites: list[str], handshakes: Mapping[str, Handshake]
) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Sites without a partial fact and the most that agree in it; the fact; who differs and how."""
    groups: dict[str, list[str]] = defaultdict(list)
    for site in sites:
        if name in handshakes[site].facts:
            groups[handshakes[site].facts[name]].append(site)
    if not groups:
        return sites, {}, {}
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[1]))
    value, agreeing = ordered[0]
    if len(ordered) > 1 and len(ordered[1][1]) == len(agreeing):
        raise FederationError(
            f"sites disagree and neither side is a majority: {', '.join(agreeing)} against "
            f"{', '.join(ordered[1][1])}: {name} ({_short(value)} against {_short(ordered[1][0])})"
        )
    others = {
        site: f"differs from the majority: {name} (expected {_short(value)}, got {_short(other)})"
        for other, names in ordered[1:]
        for site in names
    }
    return [site for site in sites if site not in others], {name: value}, others


def check_own_code(facts: Mapping[str, str]) -> None:
    """Refuse to serve a job with other code than it was exported with.

    Raises:
        FederationError: The server has another VLTune.
    """
    own = {"vltune": __version__, "code": code_hash()}
    other = [
        f"{name} is {own[name]}, the job's is {facts[name]}"
        for name in sorted(own.keys() & facts.keys())
        if own[name] != facts[name]
    ]
    if other:
        raise FederationError(
            f"the server does not fit the job: {', '.join(other)}. Install the VLTune there that "
            "the job was exported with; where the job brings its code, take away what is found "
            "before it (an installed one, PYTHONPATH)."
        )


def _check_majority(ordered: list[list[str]], handshakes: Mapping[str, Handshake]) -> None:
    """Refuse two equally large groups: there is no telling which of them is wrong."""
    if len(ordered) < 2 or len(ordered[0]) > len(ordered[1]):
        return
    first, second = ordered[0], ordered[1]
    difference = describe_handshakes(handshakes[first[0]], handshakes[second[0]])
    raise FederationError(
        f"sites disagree and neither side is a majority: {', '.join(first)} against "
        f"{', '.join(second)}: {shown(difference)}"
    )


def describe_sites(reasons: Mapping[str, str]) -> str:
    """One line of `site: reason`, sorted by site."""
    return "; ".join(f"{site}: {reasons[site]}" for site in sorted(reasons)) or "nobody answered"


def describe_handshakes(expected: Handshake, got: Handshake) -> str:
    """Readable difference of two handshakes."""
    parts = []
    tensors = describe_difference(expected.spec, got.spec)
    if tensors:
        parts.append(f"shared tensors ({tensors})")
    for name in sorted((expected.facts.keys() | got.facts.keys()) - set(PARTIAL_FACTS)):
        ours, theirs = expected.facts.get(name, "nothing"), got.facts.get(name, "nothing")
        if ours != theirs:
            parts.append(f"{name} (expected {_short(ours)}, got {_short(theirs)})")
    if not parts and _fingerprint(expected) != _fingerprint(got):
        parts.append(
            f"initial tensors (expected {_short(expected.initial_hash)}, got "
            f"{_short(got.initial_hash)}: another seed or library version)"
        )
    return ", ".join(parts)


def _short(text: str) -> str:
    is_hash = len(text) == hashlib.sha256().digest_size * 2
    return text[:SHOWN_HASH] + "..." if is_hash else text


def _unusable(handshake: Handshake, required: SharedSpec | None, facts: Mapping[str, str]) -> str:
    if handshake.num_examples < 1:
        return "has no training images"
    if required is not None:
        difference = describe_difference(required, handshake.spec)
        if difference:
            return f"does not fit the adapter that the run continues from: {difference}"
    other = [
        f"{name} is {_short(handshake.facts.get(name, 'nothing'))}, the job's is {_short(value)}"
        for name, value in sorted(facts.items())
        if not handshake.facts.get(name, "").startswith(value)
    ]
    return f"does not fit the job: {', '.join(other)}" if other else ""


def _fingerprint(handshake: Handshake) -> str:
    facts = [item for item in sorted(handshake.facts.items()) if item[0] not in PARTIAL_FACTS]
    digest = hashlib.sha256(repr(facts).encode())
    digest.update(handshake.initial_hash.encode())
    for name in sorted(handshake.initial):
        digest.update(f"{name}{tuple(handshake.initial[name].shape)}".encode())
        digest.update(_bytes(handshake.initial[name]))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
