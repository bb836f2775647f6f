"""Captions, words, clips: vectors of any model by name, made small on the spot; optical flow of a movement that is known."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from apps.brain_encoders.language import caption_vectors, joint_vectors, word_vectors
from apps.brain_encoders.motion import end_point_error, motion_features, optical_flow, video_vectors
from apps.brain_encoders.study import Study
from shared.errors import UserError
from tests.commands import Answer, one_line_error

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "face", "word", "and", "in", "front", "of", "scene", "texture", "nothing"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model of two layers with the words of the phantom's captions."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(WORDS), **small)).save_pretrained(folder)
    return folder


def test_captions_have_vectors_that_do_not_depend_on_their_batch(bert: Path) -> None:
    captions = ["a face in front of a scene", "a word", "nothing in front of a texture"]
    together, alone = caption_vectors(captions, name=str(bert)), caption_vectors(captions[1:2], name=str(bert))
    assert together.shape == (3, 16)
    assert together[1] == pytest.approx(alone[0], abs=1e-5), "padding is not counted"
    layer = caption_vectors(captions, name=str(bert), layer="encoder.layer.0")
    assert not np.allclose(layer, together)


def test_a_word_is_read_with_the_words_before_it(bert: Path) -> None:
    first, second = word_vectors(["a", "face"], name=str(bert)), word_vectors(["of", "face"], name=str(bert))
    assert first.shape == (2, 16)
    assert not np.allclose(first[1], second[1])
    assert np.allclose(
        word_vectors(["a", "face"], name=str(bert), context=0)[1], word_vectors(["of", "face"], name=str(bert), context=0)[1]
    )


def test_empty_captions_and_unknown_models_are_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 of 2 stimuli have no caption"):
        caption_vectors(["a", " "], name=str(bert))
    with pytest.raises(UserError, match=r"no module 'nowhere'"):
        caption_vectors(["a"], name=str(bert), layer="nowhere")
    with pytest.raises(UserError, match="cannot be had as a text model"):
        caption_vectors(["a"], name=str(tmp_path))


def joint_model(folder: Path, kind: str) -> Path:
    """A picture-caption model of one layer: ViLT, one stream of both; FLAVA, two streams and one of both; or CLIP, with two sides."""
    from transformers import (
        BertTokenizerFast,
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        FlavaConfig,
        FlavaImageProcessor,
        FlavaModel,
        FlavaProcessor,
        ViltConfig,
        ViltImageProcessor,
        ViltModel,
        ViltProcessor,
    )

    torch.manual_seed(0)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    if kind == "vilt":
        ViltModel(ViltConfig(vocab_size=len(WORDS), image_size=64, patch_size=16, **small)).save_pretrained(folder)
        ViltProcessor(ViltImageProcessor(size={"shortest_edge": 64}), tokenizer).save_pretrained(folder)
    elif kind == "flava":
        image, text = {"image_size": 32, "patch_size": 16, **small}, {"vocab_size": len(WORDS), **small}
        FlavaModel(
            FlavaConfig(image_config=image, text_config=text, multimodal_config=small, hidden_size=16, projection_dim=16)
        ).save_pretrained(folder)
        FlavaProcessor(FlavaImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False), tokenizer).save_pretrained(folder)
    else:
        text = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, **small}
        vision = {"image_size": 32, "patch_size": 16, **small}
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
        square = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        CLIPProcessor(CLIPImageProcessor(**square), tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["vilt", "clip", "flava"])
def test_a_picture_and_its_caption_have_one_vector(kind: str, tmp_path: Path, bert: Path) -> None:
    name = str(joint_model(tmp_path, kind))
    pictures = [np.random.default_rng(side).integers(0, 255, (40, side, 3), dtype=np.uint8) for side in (40, 60, 80)]
    captions = ["a face", "a word in front of a scene", "nothing"]
    found = joint_vectors(pictures, captions, name=name)
    assert found.shape == (3, 16)
    assert found[1] == pytest.approx(joint_vectors(pictures[1:2], captions[1:2], name=name)[0], abs=1e-5), "others do not matter"
    assert not np.allclose(found[0], joint_vectors(pictures[:1], ["a scene"], name=name)[0]), "the caption does"
    assert not np.allclose(found[0], joint_vectors(pictures[1:2], captions[:1], name=name)[0]), "and the picture"
    with pytest.raises(UserError, match="1 of 3 stimuli have no caption"):
        joint_vectors(pictures, ["a", "", "a"], name=name)
    with pytest.raises(UserError, match="reads no pictures with captions"):
        joint_vectors(pictures, captions, name=str(bert))


def test_spaces_are_compared_with_and_without_the_leak(folder: Path, study: Study, bert: Path, encoders: Callable[..., Answer]) -> None:
    """Captions say what the category units respond to, so that text explains more of them than the light does."""
    words = ("--spaces", "[text,light]", "--joined", "[concatenated,banded]", "--search", 3)
    answer = encoders("compare", "--data.root", folder, *words, "--text_model", bert, "--data.cache", "null", "--output", "spaces")
    assert answer.code == 0, answer.err
    assert "show a picture that was also fitted" in answer.out
    assert "held-out R2 of light and text alone" in answer.out
    rows = {row.split(",")[0]: row.split(",")[1:] for row in Path("spaces/spaces.csv").read_text().splitlines()[1:]}
    assert float(rows["text"][5]) > float(rows["light"][5])
    assert list(rows) == ["text", "light", "concatenated", "banded"]
    with open("spaces/units.csv", newline="") as file:
        units = list(csv.DictReader(file))
    assert len(units) == study.units
    faces = [unit["preferred"] for unit, inside in zip(units, study.regions["FFA"], strict=True) if inside]
    assert faces.count("text") > len(faces) / 2 > 10 * faces.count("light")
    silent = [unit["preferred"] for unit, inside in zip(units, study.regions["control"], strict=True) if inside]
    assert silent.count("") > 0.9 * len(silent), "units that nothing predicts prefer nothing"
    found = json.loads(Path("spaces/metrics.json").read_text())
    assert found["product_measure"]["text"] > found["product_measure"]["light"]
    with open("spaces/regions.csv", newline="") as file:
        regions = {(row["model"], row["score"], row["region"]): row for row in csv.DictReader(file)}
    shares = [float(unit["text_product_measure"]) for unit, inside in zip(units, study.regions["FFA"], strict=True) if inside]
    assert float(regions["text", "product_measure", "FFA"]["mean"]) == pytest.approx(np.mean(shares), abs=1e-5)
    assert "preferred space" in Path("spaces/map.html").read_text()
    one_line_error(encoders("compare", "--data.root", folder, "--spaces", "[]"), "spaces: name at least one")


def test_a_hub_that_cannot_be_reached_is_one_line(
    folder: Path, encoders: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An address where nobody answers; the library would else tell of each of its tries."""
    nowhere = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", nowhere)
    monkeypatch.setattr("time.sleep", lambda _: None)
    logger = logging.getLogger("huggingface_hub")
    logger.addHandler(caplog.handler)
    try:
        answer = encoders("compare", "--data.root", folder, "--spaces", "[text]", "--text_model", "nobody/has-this")
    finally:
        logger.removeHandler(caplog.handler)
    one_line_error(answer, "nobody/has-this: cannot be had as a text model", "Name a folder")
    assert not caplog.records


def moving_texture(dx: float, dy: float) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random((64, 64)), 2, mode="wrap")
    noise = 255 * (noise - noise.min()) / np.ptp(noise)
    frames = [ndimage.shift(noise, (step * dy, step * dx), order=1, mode="grid-wrap") for step in range(4)]
    return np.stack([np.repeat(frame[..., None], 3, axis=2) for frame in frames]).astype(np.uint8)


def test_the_flow_of_a_known_movement_is_found() -> None:
    flow = optical_flow(moving_texture(2, -1))
    assert flow.shape == (3, 64, 64, 2)
    inside = np.zeros(flow.shape[:3], dtype=bool)
    inside[:, 12:-12, 12:-12] = True
    truth = np.broadcast_to(np.float32([2, -1]), flow.shape)
    assert end_point_error(truth, flow, inside) < 0.2
    assert end_point_error(truth, np.zeros_like(flow)) == pytest.approx(5**0.5)


def test_motion_features_say_where_to_and_how_fast() -> None:
    right = np.zeros((1, 8, 8, 2))
    right[..., :4, 0] = 3
    features = motion_features(right, grid=2, directions=4).reshape(2, 2, 5)
    assert features[0, 0] == pytest.approx([3, 0, 0, 0, 3])
    assert not features[0, 1].any()


def test_a_single_frame_does_not_move() -> None:
    with pytest.raises(UserError, match="1 frame"):
        optical_flow(moving_texture(1, 0)[:1])


def test_raft_flows_over_frames_of_any_size(tmp_path: Path) -> None:
    """By random weights, which say nothing of a movement: that the weights load, and each pixel of the frames has a flow."""
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    torch.save(raft_small().state_dict(), tmp_path / "raft.pth")
    flow = optical_flow(moving_texture(1, 0)[:2, :50], method="raft", weights=tmp_path / "raft.pth")
    assert flow.shape == (1, 50, 64, 2)
    assert np.isfinite(flow).all()
    with pytest.raises(UserError, match="raft needs weights"):
        optical_flow(moving_texture(1, 0), method="raft")


def test_a_clip_has_a_vector_by_any_video_model(tmp_path: Path) -> None:
    from transformers import VideoMAEConfig

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    VideoMAEConfig(image_size=32, num_frames=4, **small).save_pretrained(tmp_path)
    vectors = video_vectors([moving_texture(1, 0)] * 2, name=str(tmp_path), pretrained=False)
    assert vectors.shape == (2, 16)
    assert vectors[0] == pytest.approx(vectors[1])
