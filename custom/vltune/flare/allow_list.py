"""What may leave a site beside shared tensors, by name; docs/privacy.md says what each is."""

from vltune.geneval_prompts import TAGS
from vltune.private_release import PRIVACY_METRICS

TASK_COSINES = frozenset({"task_cosine", *(f"task_cosine_{layer}" for layer in range(1, 200))})
TRAIN_METRICS = (
    PRIVACY_METRICS
    | TASK_COSINES
    | {
        "loss",
        "loss_understanding",
        "loss_generation",
        "steps",
        "steps_warm_up",
        "seconds_train",
        "seconds_task",
    }
)
UNIFIED_METRICS = frozenset(
    {"vqa_accuracy", "generation_loss", "geneval", *(f"geneval_{tag}" for tag in TAGS)}
)
VALIDATION_METRICS = (
    UNIFIED_METRICS
    | {f"test_{name}" for name in UNIFIED_METRICS}
    | {f"zero_shot_{name}" for name in ("vqa_accuracy", "generation_loss", "geneval")}
    | {
        "mAP",
        "CF1",
        "OF1",
        "zero_shot_mAP",
        "accuracy",
        "soft_accuracy",
        "token_f1",
        "rouge_l",
        "preference_accuracy",
        "zero_shot_accuracy",
        "test_accuracy",
        "test_soft_accuracy",
        "test_token_f1",
        "test_rouge_l",
        "test_preference_accuracy",
        "num_classes_scored",
        "num_withheld",
        "seconds_evaluate",
    }
)
SITE_METRICS = TRAIN_METRICS | VALIDATION_METRICS | {"seconds_prepare"}
"""Scalars."""

SITE_HISTOGRAMS = frozenset(
    {"class_offsets", "lows", "highs", "positives", "negatives", "average_precisions"}
)
"""Wire names of `vltune.histograms.ScoreHistograms`, flat int32 counts."""

SITE_FACTS = frozenset(
    {
        "vltune",
        "code",
        "backbone",
        "preprocessing",
        "class_list",
        "conditions",
        "adapter",
        "judge",
    }
)
"""Facts of the handshake, strings that must agree between sites."""

HANDSHAKE_KEYS = frozenset({"spec", "initial_hash", "num_examples", "num_validation", "facts"})
