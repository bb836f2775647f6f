"""Videos come frame by frame, upright; a damaged one gives what can be decoded, and then says so."""

import gc
import queue
import threading

import av
import numpy as np
import pytest

from shared.errors import InputError
from shared.imaging import Frame, Limits, samples
from tests.shared.imaging.made import clip, flat_clip

CONTAINERS = {"mp4": "mp4", "mov": "mov", "avi": "avi", "mkv": "matroska"}


def until_failure(source, name="clip.mp4") -> tuple[list[Frame], str]:
    frames: list[Frame] = []
    try:
        for frame in samples(source, name=name):
            frames.append(frame)
    except InputError as error:
        return frames, str(error)
    return frames, ""


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_every_frame_in_order(tmp_path, suffix, codec):
    content, truth = clip(CONTAINERS[suffix], codec=codec)
    path = tmp_path / f"clip.{suffix}"
    path.write_bytes(content)
    for source in (path, content):
        frames = list(samples(source, name=path.name))
        assert [frame.id for frame in frames] == [f"frame_{index:06d}" for index in range(len(truth))]
        for frame, expected in zip(frames, truth, strict=True):
            image = frame.read()
            assert image.shape == (64, 96, 3)
            assert image.dtype == np.uint8
            assert np.abs(image.astype(int) - expected).mean() < 4  # the codec's loss; neighbouring frames differ by 20


def test_webm():
    content, truth = clip("webm", codec="libvpx", count=3)
    assert len(list(samples(content, name="clip.webm"))) == len(truth)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_turned_or_mirrored_camera_comes_back_upright(degrees, mirrored):
    content, truth = clip("mp4", count=1, rotation=(degrees, mirrored))
    (frame,) = samples(content, name="phone.mp4")
    expected = np.rot90(truth[0], degrees // 90)  # counter-clockwise, then mirrored
    expected = expected[:, ::-1] if mirrored else expected
    image = frame.read()
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() < 4


def test_colours_are_right():
    colours = np.zeros((64, 96, 3), np.uint8)
    colours[:, :32, 0] = colours[:, 32:64, 1] = colours[:, 64:, 2] = 200
    (frame,) = samples(flat_clip([colours], "mp4", codec="libx264"), name="bars.mp4")
    for column in (16, 48, 80):
        np.testing.assert_allclose(frame.read()[32, column].astype(int), colours[32, column], atol=12)  # 4:2:0 and the codec's loss


def test_frames_may_be_read_in_another_thread_while_the_next_are_decoded():
    content, truth = clip(count=40)
    waiting: queue.Queue[Frame | None] = queue.Queue(maxsize=8)

    def feed() -> None:
        for frame in samples(content, name="clip.mp4"):
            waiting.put(frame)
        waiting.put(None)

    thread = threading.Thread(target=feed)
    thread.start()
    images = [frame.read() for frame in iter(waiting.get, None)]
    thread.join()
    assert len(images) == 40
    assert all(np.abs(image.astype(int) - expected).mean() < 4 for image, expected in zip(images, truth, strict=True))


def test_a_dropped_iterator_closes_the_file(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip()[0])
    frames = samples(path, name="clip.mp4")
    image = next(frames).read()
    del frames
    gc.collect()
    assert not [name for name in open_files() if name.endswith("clip.mp4")]
    assert image.shape == (64, 96, 3)


def open_files() -> list[str]:
    import psutil

    return [file.path for file in psutil.Process().open_files()]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
@pytest.mark.parametrize("container", ["avi", "matroska", "fragmented mp4", "mp4 with its index first"])
def test_a_video_cut_short_gives_its_frames_and_then_one_error(container, codec, share):
    random = np.random.default_rng(0)
    truth = [np.kron(random.integers(0, 255, (16, 24, 1), np.uint8), np.ones((4, 4, 3), np.uint8)) for _ in range(30)]
    options = {"movflags": "frag_keyframe+empty_moov"} if container.startswith("fragmented") else {}
    content = flat_clip(
        truth, container.split()[-1] if container.startswith("fragmented") else container.split()[0], codec=codec, **options
    )
    if container.endswith("first"):
        content = index_first(content)
    frames, error = until_failure(content[: int(len(content) * share)])
    assert 0 < len(frames) < len(truth)
    for frame, expected in zip(frames[:-1], truth, strict=False):  # the last one may be the one that was cut
        assert np.abs(frame.read().astype(int) - expected).mean() < 12  # the codec's loss on noise; another frame differs by 85
    assert error.startswith("clip.mp4: ")
    assert f": {len(frames)}." in error
    assert "opy it again" in error or "Copy or export" in error or "copy or export" in error


def index_first(content: bytes) -> bytes:
    """Moves the index (moov) before the pictures (mdat), as a web server wants it, and mends the offsets in it (stco)."""
    parts, position = {}, 0
    while position < len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        parts[content[position + 4 : position + 8]] = content[position : position + length]
        position += length
    index = bytearray(parts[b"moov"])
    table = index.index(b"stco")
    count = int.from_bytes(index[table + 8 : table + 12], "big")
    shift = len(index)
    for entry in range(table + 12, table + 12 + 4 * count, 4):
        index[entry : entry + 4] = (int.from_bytes(index[entry : entry + 4], "big") + shift).to_bytes(4, "big")
    rest = [part for kind, part in parts.items() if kind not in (b"ftyp", b"moov", b"mdat")]
    return b"".join([parts[b"ftyp"], bytes(index), *rest, parts[b"mdat"]])


def test_an_mp4_that_lost_its_index_is_refused_at_once():
    content, _ = clip()
    with pytest.raises(InputError, match=r"clip.mp4: cannot be decoded as MP4 video .*copy or export it again"):
        samples(content[: len(content) // 2], name="clip.mp4")


def test_a_whole_video_with_bytes_behind_it_is_whole():
    for container in CONTAINERS.values():
        content, truth = clip(container)
        frames, error = until_failure(content + b"\0" * 100)
        assert not error
        assert len(frames) == len(truth)


def test_a_playlist_in_disguise_opens_no_other_file(tmp_path):
    """FFmpeg would follow it to any file of this machine."""
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(clip()[0])
    for content in (f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n", f"ffconcat version 1.0\nfile '{secret}'\n"):
        path = tmp_path / "upload.mp4"
        path.write_text(content)
        with pytest.raises(InputError, match="it holds text"):
            samples(path, name="upload.mp4")


def test_limits(tmp_path):
    content, _ = clip()
    with pytest.raises(InputError, match="claims 96 x 64 pixels"):
        samples(content, name="clip.mp4", limits=Limits(pixels=1000))
    with pytest.raises(InputError, match="bytes are read"):
        samples(content, name="clip.mp4", limits=Limits(bytes=1000))
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    assert next(samples(path, name="clip.mp4", limits=Limits(bytes=1000))).id == "frame_000000"  # streamed, never held


def test_sound_alone_is_not_a_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        output.mux(stream.encode(sound))
        output.mux(stream.encode())
    with pytest.raises(InputError, match=r"sound.mp4: has no pictures, only sound or data"):
        samples(path, name="sound.mp4")
