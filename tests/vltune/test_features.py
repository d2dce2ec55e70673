import hashlib
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vltune.backbones.clip import BackboneConfig, ClipBackbone, load_clip
from vltune.features import EncodingStopped, FeatureCache, FeatureCacheError

Folder = Callable[..., Path]
ROW_BYTES = 2 * 16 * 11  # float16, 1 + 15 tokens, D=11


def read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def write_images(folder: Path, count: int, seed: int = 0) -> list[Path]:
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(seed)
    paths = [folder / f"{seed}-{i}.png" for i in range(count)]
    for path in paths:
        Image.fromarray(generator.integers(0, 255, (19, 23, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return write_images(tmp_path / "images", 7)


@pytest.fixture
def cache(tmp_path: Path, tiny_clip: ClipBackbone) -> FeatureCache:
    return FeatureCache(tmp_path / "cache", tiny_clip)


def expected_features(backbone: ClipBackbone, paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    pixels = torch.stack([backbone.preprocess(read(path)) for path in paths])
    features = backbone.encode_images(pixels)
    return features.patch_features.numpy(), features.image_features.numpy()


def test_features_are_the_towers_in_sample_order(
    cache: FeatureCache, tiny_clip: ClipBackbone, images: list[Path]
) -> None:
    features = cache.encode(images, read, batch_size=3)
    patches, pooled = expected_features(tiny_clip, images)
    assert features.num_encoded == 7
    assert features.patch_features.shape == (7, 15, 11)
    assert len(features.patch_features) == 7
    assert features.patch_features[0:2].dtype == np.float16
    # float16 rounds unit-norm entries by at most 2^-11
    np.testing.assert_allclose(features.patch_features[np.arange(7)], patches, atol=5e-4)
    np.testing.assert_allclose(features.image_features, pooled, atol=5e-4)
    np.testing.assert_allclose(features.patch_features[[5, 2]], patches[[5, 2]], atol=5e-4)
    assert features.patch_features[4].shape == (15, 11)
    assert features.image_features.dtype == np.float32


def test_a_second_run_encodes_nothing(
    cache: FeatureCache, tiny_clip: ClipBackbone, images: list[Path]
) -> None:
    first = cache.encode(images, read)
    again = FeatureCache(cache.folder.parent, tiny_clip).encode(images[::-1], read)
    assert again.num_encoded == 0
    assert np.array_equal(again.patch_features[:], first.patch_features[:][::-1])
    assert (cache.folder / "rows.bin").stat().st_size == 7 * ROW_BYTES


def test_a_row_belongs_to_content_not_to_a_name(cache: FeatureCache, images: list[Path]) -> None:
    copy = images[0].with_name("copy.png")
    copy.write_bytes(images[0].read_bytes())
    features = cache.encode([images[0], copy, images[1], images[0]], read)
    assert features.num_encoded == 2
    rows = features.patch_features[:]
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[0], rows[3])
    assert not np.array_equal(rows[0], rows[2])
    images[0].write_bytes(images[2].read_bytes())
    changed = cache.encode([images[0], images[2]], read)
    assert changed.num_encoded == 1
    assert np.array_equal(changed.patch_features[0], changed.patch_features[1])


def test_the_store_knows_content_it_holds(
    cache: FeatureCache, tiny_clip: ClipBackbone, images: list[Path]
) -> None:
    """A cache as a later process opens it: it asks by content, so a changed file is unknown."""
    cache.encode(images[:2], read)
    later = FeatureCache(cache.folder.parent, tiny_clip)
    assert later.folder == cache.folder
    assert [later.holds(path) for path in images[:3]] == [True, True, False]
    assert not later.holds(images[0].with_name("none.png"))
    images[1].write_bytes(images[2].read_bytes())
    assert not FeatureCache(cache.folder.parent, tiny_clip).holds(images[1])
    assert later.encode(images[:1], read).num_encoded == 0


def test_another_backbone_or_preprocessing_has_its_own_store(
    clip_folder: Folder, tmp_path: Path, images: list[Path]
) -> None:
    preprocess = {"mean": [0.1] * 3, "std": [0.5] * 3}
    backbones = [
        load_clip(BackboneConfig("t", str(folder)))
        for folder in (
            clip_folder("a"),
            clip_folder("b", quick_gelu=True),
            clip_folder("c", preprocess=preprocess),
        )
    ]
    caches = [FeatureCache(tmp_path / "cache", backbone) for backbone in backbones]
    assert [cache.encode(images, read).num_encoded for cache in caches] == [7, 7, 7]
    assert len({cache.folder for cache in caches}) == 3


def test_progress_counts_what_is_missing(cache: FeatureCache, images: list[Path]) -> None:
    cache.encode(images[:2], read)
    seen: list[tuple[int, int]] = []
    cache.encode(
        images, read, batch_size=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_folder_and_files_are_the_owners_alone(cache: FeatureCache, images: list[Path]) -> None:
    cache.encode(images, read)
    assert stat.S_IMODE(cache.folder.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    for file in cache.folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_estimate_is_what_is_used_and_delete_frees_it(
    cache: FeatureCache, images: list[Path]
) -> None:
    cache.delete()  # nothing there: nothing to do
    cache.encode(images, read)
    used = sum((cache.folder / name).stat().st_size for name in ("rows.bin", "index.bin"))
    assert cache.estimate_bytes(7) == used == 7 * (ROW_BYTES + 32)
    cache.delete()
    assert not cache.folder.exists()
    assert cache.encode(images, read).num_encoded == 7


# --- interruptions


def test_stop_keeps_whole_batches(cache: FeatureCache, images: list[Path]) -> None:
    done: list[int] = []
    with pytest.raises(EncodingStopped):
        cache.encode(
            images,
            read,
            batch_size=3,
            progress=lambda count, _: done.append(count),
            should_stop=lambda: bool(done),
        )
    assert done == [3]
    assert cache.encode(images, read).num_encoded == 4


def test_unreadable_image_raises_the_readers_error(cache: FeatureCache, images: list[Path]) -> None:
    images[4].write_bytes(b"no image")
    with pytest.raises(OSError, match="cannot identify image file"):
        cache.encode(images, read, batch_size=2)
    images[4].unlink()
    with pytest.raises(FileNotFoundError):
        cache.encode(images, read)
    del images[4]
    assert cache.encode(images, read).num_encoded == 2  # four were kept


@pytest.mark.parametrize("torn", ["rows without index", "half a row", "half an entry", "no rows"])
def test_what_a_crash_left_is_encoded_again(
    cache: FeatureCache, tiny_clip: ClipBackbone, images: list[Path], torn: str
) -> None:
    """A crash may stop between rows and index; the last two cannot happen but must not corrupt."""
    cache.encode(images, read)
    rows, index = cache.folder / "rows.bin", cache.folder / "index.bin"
    expected_missing = {"rows without index": 2, "half a row": 1, "half an entry": 1, "no rows": 7}
    if torn == "rows without index":
        os.truncate(index, 5 * 32)
    elif torn == "half a row":
        os.truncate(rows, 7 * ROW_BYTES - 13)
    elif torn == "half an entry":
        os.truncate(index, 7 * 32 - 5)
    else:
        rows.unlink()
    again = cache.encode(images, read)
    assert again.num_encoded == expected_missing[torn]
    patches, pooled = expected_features(tiny_clip, images)
    np.testing.assert_allclose(again.patch_features[:], patches, atol=5e-4)
    np.testing.assert_allclose(again.image_features, pooled, atol=5e-4)
    assert rows.stat().st_size == 7 * ROW_BYTES


ENCODE = """
import sys, time
from pathlib import Path
from PIL import Image
import torch
torch.set_num_threads(1)
from vltune.backbones.clip import BackboneConfig, load_clip
from vltune.features import FeatureCache

model, cache, images, delay = sys.argv[1:]
backbone = load_clip(BackboneConfig("tiny", model))
paths = sorted(Path(images).iterdir())

def read(path):
    time.sleep(float(delay))
    return Image.open(path).convert("RGB")

print("ready", flush=True)
sys.stdin.readline()
features = FeatureCache(Path(cache), backbone).encode(
    paths, read, batch_size=2, progress=lambda done, total: print(done, flush=True))
print("encoded", features.num_encoded, flush=True)
"""


def start_encoder(model: Path, cache: Path, images: Path, delay: float) -> subprocess.Popen[str]:
    arguments = [str(model), str(cache), str(images), str(delay)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", ENCODE, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.slow
def test_killed_process_loses_at_most_one_batch(clip_folder: Folder, tmp_path: Path) -> None:
    model = clip_folder()
    images = write_images(tmp_path / "images", 11)
    process = start_encoder(model, tmp_path / "cache", tmp_path / "images", 0.2)
    go(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "2\n"
    assert process.stdout.readline() == "4\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    backbone = load_clip(BackboneConfig("tiny", str(model)))
    features = FeatureCache(tmp_path / "cache", backbone).encode(images, read)
    assert 11 - 6 <= features.num_encoded <= 11 - 4
    patches, _ = expected_features(backbone, images)
    np.testing.assert_allclose(features.patch_features[:], patches, atol=5e-4)


@pytest.mark.slow
def test_two_processes_share_the_work(clip_folder: Folder, tmp_path: Path) -> None:
    """They start together; one encodes, the other waits and then finds everything."""
    model = clip_folder()
    write_images(tmp_path / "images", 7)
    processes = [
        start_encoder(model, tmp_path / "cache", tmp_path / "images", 0.05) for _ in range(2)
    ]
    for process in processes:
        go(process)
    outputs = [process.communicate(timeout=60)[0].splitlines()[-1] for process in processes]
    assert sorted(outputs) == ["encoded 0", "encoded 7"]


def test_waiting_for_another_holder_can_be_stopped(cache: FeatureCache, images: list[Path]) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow_read(path: Path) -> Image.Image:
        entered.set()
        release.wait(10)
        return read(path)

    holder = threading.Thread(target=cache.encode, args=(images, slow_read))
    holder.start()
    entered.wait(10)
    asked = [False] * (len(images) + 2)  # once a file, then twice at the lock
    with pytest.raises(EncodingStopped):
        cache.encode(images, read, should_stop=lambda: not asked or asked.pop())
    release.set()
    holder.join(10)
    assert cache.encode(images, read).num_encoded == 0


def test_store_deleted_while_another_waits(cache: FeatureCache, images: list[Path]) -> None:
    """The waiter must not go on with the deleted lock file."""
    cache.encode(images[:2], read)
    counts: list[int] = []
    with cache._store.locked(lambda: False):
        waiter = threading.Thread(
            target=lambda: counts.append(cache.encode(images, read).num_encoded)
        )
        waiter.start()
        time.sleep(0.1)
        cache.folder.rename(cache.folder.with_name("doomed"))  # as delete() does
    waiter.join(10)
    assert counts == [7]
    assert cache.encode(images, read).num_encoded == 0


# --- places that cannot be used


def test_full_disk_is_named_and_keeps_what_was_written(
    cache: FeatureCache, images: list[Path]
) -> None:
    """A file-size limit between two and three batches of rows stands for the full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5 * ROW_BYTES, hard))
        with pytest.raises(FeatureCacheError, match=r"cannot be written: .*Free space or move"):
            cache.encode(images, read, batch_size=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert (cache.folder / "rows.bin").stat().st_size == 4 * ROW_BYTES
    assert cache.encode(images, read).num_encoded == 3


def test_too_little_space_is_said_before_encoding(cache: FeatureCache, images: list[Path]) -> None:
    """The space check alone, for more images than any disk holds."""
    cache.encode(images, read)
    with pytest.raises(FeatureCacheError, match=r"need \d+ MB, \d+ MB are free"):
        cache._store.check_space(10**15)


def test_unwritable_place(tiny_clip: ClipBackbone, tmp_path: Path, images: list[Path]) -> None:
    (tmp_path / "file").write_text("")
    cache = FeatureCache(tmp_path / "file", tiny_clip)
    with pytest.raises(FeatureCacheError, match=r"cannot be written: .* writable as cache_dir"):
        cache.encode(images, read)


def test_store_of_another_format(cache: FeatureCache, images: list[Path]) -> None:
    cache.encode(images, read)
    meta = cache.folder / "meta.json"
    meta.write_text(meta.read_text().replace('"format": 1', '"format": 0'))
    with pytest.raises(FeatureCacheError, match=r"meta\.json is not that of this backbone"):
        cache.encode(images, read)


def test_nothing_to_encode(cache: FeatureCache, images: list[Path]) -> None:
    with pytest.raises(ValueError, match="got 0 and 64"):
        cache.encode([], read)
    with pytest.raises(ValueError, match="got 7 and 0"):
        cache.encode(images, read, batch_size=0)


def test_index_holds_the_files_hashes(cache: FeatureCache, images: list[Path]) -> None:
    cache.encode(images, read)
    expected = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in images)
    assert (cache.folder / "index.bin").read_bytes() == expected
