"""One site on disk: a few JPEGs, COCO JSON, vltune_site.yaml and a tiny CLIP folder."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from vltune.algorithms.encoded_split import FeatureBatch, zero_shot_scores
from vltune.algorithms.fedmpt import FedMPT, FedMPTConfig, build_participant
from vltune.algorithms.multilabel_site import MultiLabelParticipant, hash_tensors
from vltune.backbones.clip import BackboneConfig, BackboneError, load_clip
from vltune.conditions import ConditionError, condition_cache_mapping
from vltune.config import ConfigError, from_mapping
from vltune.data.multilabel import AnnotationError, ImageError, read_image
from vltune.histograms import ScoreHistograms, mean_average_precision_from
from vltune.metrics import multilabel_metrics
from vltune.parameters import ParameterError, check_shared
from vltune.participant import TrainingStopped
from vltune.privacy import PrivacyError
from vltune.privacy_ledger import Charge, epsilon_of
from vltune.seed import derive_seed
from vltune.site_config import read_site_config
from vltune.training import RoundPlan, TrainingConfig, local_train

CLASSNAMES = ["cat", "wine glass", "sports ball", "dog", "car", "teddy bear", "zebra"]
CONDITIONS = [("scene type", "Where it is."), ("lighting", "How bright."), ("pose", "Its posture.")]
MODEL = {"rank": 5, "gate_rank": 2, "condition_length": 2, "class_length": 2}
TRAINING = {"batch_size": 3, "local_epochs": 2, "learning_rate": 0.01}
NUM_TRAIN, NUM_VALIDATION = 8, 6

Folder = Callable[..., Path]
Job = dict[str, Any]
Participate = Callable[..., MultiLabelParticipant]


def go() -> bool:
    return False


def write_split(folder: Path, num_images: int, seed: int) -> list[list[int]]:
    """Write noise images with one to three random classes each; return the classes of each."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    images, annotations, truth = [], [], []
    for index in range(num_images):
        pixels = rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.jpg", quality=95)
        images.append({"id": index, "file_name": f"{index}.jpg", "width": 40, "height": 24})
        classes = rng.choice(len(CLASSNAMES), size=1 + index % 3, replace=False).tolist()
        truth.append(classes)
        for column in classes:
            entry = {"id": len(annotations), "image_id": index, "category_id": column + 1}
            annotations.append(entry | {"bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSNAMES)]
    write_instances(folder, images=images, annotations=annotations, categories=categories)
    return truth


def write_instances(folder: Path, **changes: Any) -> None:
    path = folder / "instances.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def write_site(folder: Path, seed: int = 0, **keys: Any) -> Path:
    """Write a site's data and its vltune_site.yaml; return the folder."""
    write_split(folder / "train", NUM_TRAIN, seed)
    write_split(folder / "validation", NUM_VALIDATION, seed + 100)
    content = {
        part: {"images": f"{part}/images", "annotations": f"{part}/instances.json"}
        for part in ("train", "validation")
    }
    (folder / "vltune_site.yaml").write_text(yaml.safe_dump(content | keys))
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_site(tmp_path / "site-1")


@pytest.fixture
def job(clip_folder: Folder) -> Job:
    return {
        "name": "a key that only the server reads",
        "seed": 34,
        "classnames": CLASSNAMES,
        "conditions": condition_cache_mapping(
            "seven", CLASSNAMES, CONDITIONS, {"method": "by hand", "date": "2026-01-01"}
        ),
        "backbone": {"model": "tiny", "weights": str(clip_folder())},
        "model": MODEL,
        "training": TRAINING,
        "min_cell": 1,
        "min_interval": 1,
    }


@pytest.fixture
def participate(job: Job) -> Participate:
    def make(folder: Path, name: str = "site-1", **changes: Any) -> MultiLabelParticipant:
        config = read_site_config(folder / "vltune_site.yaml")
        return build_participant(job | changes, config, name, folder / "state", threads=1)

    return make


def test_two_sites_start_equal(participate: Participate, site: Path, tmp_path: Path) -> None:
    other = write_site(tmp_path / "site-2", seed=7)
    first = participate(site).prepare(go)
    torch.manual_seed(99)
    second = participate(other, "site-2").prepare(go)
    assert first.initial_hash == second.initial_hash
    assert first.facts == second.facts
    assert first.spec == second.spec
    assert all(torch.equal(first.initial[key], second.initial[key]) for key in first.spec)
    assert (first.num_examples, first.num_validation) == (NUM_TRAIN, NUM_VALIDATION)
    check_shared(first.spec, first.initial, "the site")
    assert first.facts["conditions"] == "scene type, lighting, pose"
    third = participate(site, seed=35).prepare(go)
    assert third.initial_hash != first.initial_hash
    assert third.spec == first.spec


def test_what_is_shared_stands_by_itself(participate: Participate, site: Path) -> None:
    """The handshake's and the update's tensors are copies: training afterwards moves neither."""
    participant = participate(site)
    shake = participant.prepare(go)
    update = participant.train(shake.initial, 0, go)
    assert hash_tensors(shake.initial) == shake.initial_hash
    before = hash_tensors(update.tensors)
    participant.train(shake.initial, 1, go)
    assert hash_tensors(update.tensors) == before


def test_record_level_training_tells_its_epsilon_and_not_its_loss(
    participate: Participate, site: Path
) -> None:
    """Eight images in batches of 3: q = 3 / 8, two epochs of three steps, in each of two rounds."""
    privacy = {"level": "record", "noise_multiplier": 1.5, "clip_norm": 1.0, "delta": 1e-3}
    participant = participate(site, privacy=privacy)
    participant.state_dir.mkdir()
    shake = participant.prepare(go)
    first = participant.train(shake.initial, 0, go)
    assert set(first.metrics) == {"steps", "seconds_train", "record_epsilon", "record_delta"}
    assert first.metrics["steps"] == 6
    assert hash_tensors(first.tensors) != shake.initial_hash
    again = participate(site, privacy=privacy)  # another process
    again.prepare(go)
    second = again.train(shake.initial, 0, go)
    assert hash_tensors(second.tensors) != hash_tensors(first.tensors)  # the noise is secret
    spent = epsilon_of([Charge(1.5, 3 / 8, 12)], 1e-3)
    assert second.metrics["record_epsilon"] == pytest.approx(spent)
    with pytest.raises(PrivacyError, match=r"with 8 training images it must be below 0.12"):
        participate(site, privacy=privacy | {"delta": 0.5}).train(shake.initial, 0, go)


def test_losses_of_single_images_are_those_of_the_batch(
    participate: Participate, site: Path
) -> None:
    participant = participate(site)
    participant.prepare(go)
    batch = participant.train_split.batch_at(torch.arange(NUM_TRAIN))
    losses = participant.model.example_losses(batch)
    assert len(losses) == NUM_TRAIN
    torch.testing.assert_close(
        torch.stack(losses).mean(), participant.model.loss(batch), rtol=1e-4, atol=1e-5
    )


def test_the_second_time_nothing_is_encoded(participate: Participate, site: Path) -> None:
    first, second = participate(site), participate(site)
    for participant, wanted in ((first, (NUM_TRAIN, NUM_VALIDATION)), (second, (0, 0))):
        participant.prepare(go)
        splits = (participant.train_split, participant.validation_split)
        assert tuple(split.features.num_encoded for split in splits) == wanted
    rows = torch.arange(NUM_TRAIN)
    for ours, theirs in zip(
        first.train_split.batch_at(rows), second.train_split.batch_at(rows), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_features_and_labels_are_those_of_the_files(participate: Participate, site: Path) -> None:
    participant = participate(site)
    participant.prepare(go)
    batch = participant.train_split.batch_at(torch.tensor([5, 2]))
    assert batch.patch_features.shape == (2, 15, 11)
    assert batch.patch_features.dtype == batch.image_features.dtype == torch.float32
    backbone = participant.backbone
    pictures = [backbone.preprocess(read_image(site / f"train/images/{i}.jpg")) for i in (5, 2)]
    wanted = backbone.encode_images(torch.stack(pictures))
    torch.testing.assert_close(batch.patch_features, wanted.patch_features, rtol=0, atol=1e-3)
    torch.testing.assert_close(batch.image_features, wanted.image_features, rtol=0, atol=1e-3)
    truth = json.loads((site / "train/instances.json").read_text())["annotations"]
    for row, image in enumerate((5, 2)):
        columns = {a["category_id"] - 1 for a in truth if a["image_id"] == image}
        assert set(batch.labels[row].nonzero().flatten().tolist()) == columns


def test_training_is_a_function_of_seed_site_and_round(
    participate: Participate, site: Path
) -> None:
    participant = participate(site)
    initial = participant.prepare(go).initial
    update = participant.train(initial, 3, go)
    assert set(update.metrics) == {"loss", "steps", "seconds_train"}
    assert update.metrics["steps"] == 6  # 8 images in batches of 3, twice
    assert update.num_examples == NUM_TRAIN
    moved = [key for key in initial if not torch.equal(update.tensors[key], initial[key])]
    assert moved == sorted(initial)
    wanted = hash_tensors(update.tensors)
    torch.manual_seed(0)
    assert hash_tensors(participant.train(initial, 3, go).tensors) == wanted
    assert hash_tensors(participate(site).train(initial, 3, go).tensors) == wanted
    assert hash_tensors(participant.train(initial, 4, go).tensors) != wanted
    assert hash_tensors(participate(site, "site-2").train(initial, 3, go).tensors) != wanted


def test_one_site_and_one_round_is_plain_training(
    participate: Participate, site: Path, job: Job
) -> None:
    """Bit for bit: the same loop on features that were encoded and labelled without the site."""
    participant = participate(site)
    update = participant.train(participant.prepare(go).initial, 0, go)

    backbone = load_clip(from_mapping(BackboneConfig, job["backbone"], "job"))
    paths = [site / f"train/images/{index}.jpg" for index in range(NUM_TRAIN)]
    features = backbone.encode_images(
        torch.stack([backbone.preprocess(read_image(path)) for path in paths])
    )
    labels = torch.zeros(NUM_TRAIN, len(CLASSNAMES), dtype=torch.int64)
    for entry in json.loads((site / "train/instances.json").read_text())["annotations"]:
        labels[entry["image_id"], entry["category_id"] - 1] = 1
    # The cache keeps 16 bits.
    data = FeatureBatch(*(value.half().float() for value in features), labels)
    model = FedMPT(
        from_mapping(FedMPTConfig, MODEL, "job"),
        backbone,
        [name for name, _ in CONDITIONS],
        CLASSNAMES,
        seed=34,
    )
    result = local_train(
        model,
        num_examples=NUM_TRAIN,
        batch_at=lambda rows: FeatureBatch(*(value[rows] for value in data)),
        plan=RoundPlan(TrainingConfig(**TRAINING), derive_seed(34, "site-1", 0)),
        should_stop=go,
    )
    plain = model.state_dict()
    assert set(plain) == set(update.tensors)
    for key, value in update.tensors.items():
        assert torch.equal(plain[key], value), key
    assert result.loss == update.metrics["loss"]


def test_evaluation_returns_what_is_documented(participate: Participate, site: Path) -> None:
    participant = participate(site, threshold=0.3)
    initial = participant.prepare(go).initial
    update = participant.train(initial, 0, go)
    first, second = participant.evaluate(update.tensors), participant.evaluate(update.tensors)
    scalars = {"mAP", "CF1", "OF1", "num_classes_scored", "num_withheld"}
    assert set(first.metrics) == scalars | {"zero_shot_mAP"}  # told once
    assert set(second.metrics) == scalars
    assert {key: first.metrics[key] for key in scalars} == second.metrics
    assert all(0 <= first.metrics[key] <= 1 for key in ("mAP", "CF1", "OF1", "zero_shot_mAP"))

    validation = participant.validation_split
    batch = validation.batch_at(torch.arange(NUM_VALIDATION))
    with torch.no_grad():
        logits = participant.model(batch.patch_features, batch.image_features).logits
    wanted = multilabel_metrics(
        torch.sigmoid(logits).double().numpy(), validation.samples.labels, 0.3
    )
    assert first.metrics["mAP"] == pytest.approx(wanted.mAP)
    assert first.metrics["CF1"] == pytest.approx(wanted.CF1)
    assert first.metrics["OF1"] == pytest.approx(wanted.OF1)
    assert first.metrics["num_classes_scored"] == wanted.num_classes_scored

    histograms = ScoreHistograms.from_tensors(first.histograms, "the site")
    assert histograms.num_withheld == first.metrics["num_withheld"]
    # With min_cell 1 every class that has both kinds of images is released.
    assert mean_average_precision_from([histograms])[0] == pytest.approx(wanted.mAP, abs=0.02)
    assert participate(site).evaluate(initial).metrics["mAP"] != first.metrics["mAP"]


def test_zero_shot_is_the_better_of_two_readings(participate: Participate, site: Path) -> None:
    participant = participate(site)
    told = participant.evaluate(participant.prepare(go).initial).metrics["zero_shot_mAP"]
    split = participant.validation_split
    readings = zero_shot_scores(participant.backbone, split, CLASSNAMES)
    assert set(readings) == {"pooled", "patch"}
    text = participant.backbone.encode_texts([f"a photo of a {name}." for name in CLASSNAMES])
    batch = split.batch_at(torch.arange(NUM_VALIDATION))
    cosines = {
        "pooled": batch.image_features @ text.T,
        "patch": torch.stack([(p @ text.T).max(dim=0).values for p in batch.patch_features]),
    }
    mAPs = []
    for name, wanted in cosines.items():
        logits = np.log(readings[name] / (1 - readings[name]))
        np.testing.assert_allclose(logits, 10 * wanted.numpy(), atol=1e-4)
        mAPs.append(multilabel_metrics(readings[name], split.samples.labels, 0.5).mAP)
    assert told == max(mAPs)


def test_evaluating_changes_no_training(participate: Participate, site: Path) -> None:
    plain, measured = participate(site), participate(site)
    initial = plain.prepare(go).initial
    measured.evaluate(initial)
    assert hash_tensors(plain.train(initial, 0, go).tensors) == hash_tensors(
        measured.train(initial, 0, go).tensors
    )


def test_classes_that_a_site_never_labelled_are_unknown(
    participate: Participate, site: Path
) -> None:
    for part in ("train", "validation"):
        content = json.loads((site / part / "instances.json").read_text())
        content["categories"] = content["categories"][:6]
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 7]
        write_instances(site / part, **content)
    path = site / "vltune_site.yaml"
    path.write_text(path.read_text() + "unlabelled: [zebra]\n")
    participant = participate(site)
    initial = participant.prepare(go).initial
    assert (participant.train_split.labels[:, 6] == -1).all()
    evaluation = participant.evaluate(initial)
    offsets = evaluation.histograms["class_offsets"]
    assert offsets[7] == offsets[6]
    assert torch.isfinite(torch.tensor(participant.train(initial, 0, go).metrics["loss"]))


def test_nothing_personal(participate: Participate, site: Path) -> None:
    participant = participate(site)
    assert participant.personal_state() == {}
    participant.load_personal_state({})
    with pytest.raises(ParameterError, match="unknown"):
        participant.load_personal_state({"secret": torch.zeros(1)})


def test_a_foreign_global_model_is_refused(participate: Participate, site: Path) -> None:
    participant = participate(site)
    initial = participant.prepare(go).initial
    missing = {key: value for key, value in initial.items() if key != "head_bias"}
    for wrong in (missing, initial | {"head_bias": torch.tensor(float("nan"))}):
        with pytest.raises(ParameterError, match="head_bias"):
            participant.train(wrong, 0, go)
        with pytest.raises(ParameterError, match="head_bias"):
            participant.evaluate(wrong)


@pytest.mark.parametrize("after", [0, 4])
def test_stopping_while_training(participate: Participate, site: Path, after: int) -> None:
    participant = participate(site)
    initial = participant.prepare(go).initial
    answers = iter([False] * after + [True])
    with pytest.raises(TrainingStopped, match=f"after {after} steps"):
        participant.train(initial, 0, lambda: next(answers))
    # Nothing of the stopped task is left: the next one starts from what it receives.
    again = participant.train(initial, 0, go)
    assert hash_tensors(again.tensors) == hash_tensors(
        participate(site).train(initial, 0, go).tensors
    )


def test_the_learning_rate_falls_over_the_federations_rounds(
    participate: Participate, site: Path
) -> None:
    """Round 0 of one round ends at rate 0; as the first of many it trains as at a constant rate."""
    training = TRAINING | {"schedule": "cosine"}

    def trained(**changes: Any) -> dict[str, Tensor]:
        participant = participate(site, **changes)
        return participant.train(participant.prepare(go).initial, 0, go).tensors

    def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
        return sum(float((value - second[key]).abs().sum()) for key, value in first.items())

    constant = trained()
    alone = distance(trained(training=training, num_rounds=1), constant)
    early = distance(trained(training=training, num_rounds=1000), constant)
    assert 0 < early < alone / 100
    participant = participate(site, training=training)
    with pytest.raises(ConfigError, match="num_rounds"):
        participant.train(participant.prepare(go).initial, 0, go)


def test_stopping_while_encoding(participate: Participate, site: Path) -> None:
    with pytest.raises(TrainingStopped, match="reading"):
        participate(site).prepare(lambda: True)
    asked = itertools.count()
    with pytest.raises(TrainingStopped, match="encoding"):
        participate(site).prepare(lambda: next(asked) >= NUM_TRAIN)
    assert participate(site).prepare(go).num_examples == NUM_TRAIN


def test_the_sites_own_weights_win(
    participate: Participate, site: Path, job: Job, clip_folder: Folder
) -> None:
    own = clip_folder("own", text_cfg={"layers": 2})
    path = site / "vltune_site.yaml"
    path.write_text(path.read_text() + f"weights: {{tiny: {own}, ViT-B-16: /nowhere}}\n")
    nowhere = {"model": "tiny", "weights": "/not/at/this/site"}
    facts = participate(site, backbone=nowhere).prepare(go).facts
    assert facts["backbone"] == load_clip(BackboneConfig("tiny", str(own))).fingerprint
    theirs = load_clip(from_mapping(BackboneConfig, job["backbone"], "job")).fingerprint
    assert facts["backbone"] != theirs


# What can be wrong at a site: each error names the file and the cure.


def prepare_fails(participant: MultiLabelParticipant, error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        participant.prepare(go)
    return str(caught.value)


def test_missing_or_damaged_image(participate: Participate, site: Path) -> None:
    image = site / "train/images/3.jpg"
    image.write_bytes(image.read_bytes()[:200])
    (site / "train/images/4.jpg").unlink()
    message = prepare_fails(participate(site), ImageError)
    assert str(image) in message
    assert str(image.with_name("4.jpg")) in message
    assert "on_bad_image: skip" in message
    path = site / "vltune_site.yaml"
    path.write_text(path.read_text() + "on_bad_image: skip\n")
    participant = participate(site)
    assert participant.prepare(go).num_examples == NUM_TRAIN - 2
    assert len(participant.train_split.features.patch_features) == NUM_TRAIN - 2


@pytest.mark.parametrize("part", ["train", "validation"])
def test_empty_site(participate: Participate, site: Path, part: str) -> None:
    write_instances(site / part, images=[], annotations=[])
    message = prepare_fails(participate(site), AnnotationError)
    assert str(site / part / "instances.json") in message
    assert "'images' is empty" in message
    assert "Give a file" in message


def test_no_annotation_of_the_jobs_classes(participate: Participate, site: Path) -> None:
    write_instances(site / "train", annotations=[])
    message = prepare_fails(participate(site), AnnotationError)
    assert str(site / "train/instances.json") in message
    assert "right file" in message


def test_a_class_without_category(participate: Participate, site: Path) -> None:
    categories = json.loads((site / "train/instances.json").read_text())["categories"]
    categories[3]["name"] = "Doggy"
    write_instances(site / "train", categories=categories)
    message = prepare_fails(participate(site), AnnotationError)
    assert str(site / "train/instances.json") in message
    assert "'dog'" in message
    assert "unlabelled:" in message
    assert "rename:" in message


def test_wrong_checkpoint(participate: Participate, site: Path, job: Job) -> None:
    weights = job["backbone"]["weights"]
    other = {"model": "ViT-B-16", "weights": weights}
    message = prepare_fails(participate(site, backbone=other), BackboneError)
    assert weights in message
    assert "another architecture" in message
    assert "Correct backbone.model" in message
    lost = {"model": "tiny", "weights": "/models/lost.safetensors"}
    message = prepare_fails(participate(site, backbone=lost), BackboneError)
    assert "/models/lost.safetensors" in message
    hashed = job["backbone"] | {"sha256": "0" * 64}
    message = prepare_fails(participate(site, backbone=hashed), BackboneError)
    assert weights in message
    assert "SHA-256" in message


def test_conditions_of_another_class_list(participate: Participate, site: Path) -> None:
    swapped = [CLASSNAMES[1], CLASSNAMES[0], *CLASSNAMES[2:]]
    with pytest.raises(ConditionError, match=r"order differs.*job 'wine glass', cache 'cat'"):
        participate(site, classnames=swapped)
    with pytest.raises(ConditionError, match="6 classes in the job, 7 in it"):
        participate(site, classnames=CLASSNAMES[:6])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"momentun": 0.9}}, "unknown key momentun"),
        ({"training": {"learning_rate": -1}}, "learning_rate"),
        ({"model": {"ranks": 4}}, "the job's model: unknown key ranks"),
        ({"seed": "x"}, "seed: expected int"),
        ({"backbone": {"model": "tiny", "weights": ""}}, "never starts from random weights"),
        ({"conditions": "condition_cache/embedded.json"}, "conditions"),
        ({"threshold": 1.5}, "threshold"),
        ({"min_cell": 0}, "min_cell"),
        ({"min_interval": 0}, "min_interval"),
        ({"encode_batch_size": 0}, "encode_batch_size"),
    ],
)
def test_a_wrong_job_is_refused_before_any_work(
    participate: Participate, site: Path, changes: Job, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        participate(site, **changes)


@pytest.mark.parametrize("key", ["seed", "classnames", "backbone", "training", "conditions"])
def test_a_job_without_a_key_is_refused(site: Path, job: Job, key: str) -> None:
    config = read_site_config(site / "vltune_site.yaml")
    short = {name: value for name, value in job.items() if name != key}
    with pytest.raises(ConfigError, match=f"missing key {key}"):
        build_participant(short, config, "site-1", site / "state", threads=1)
