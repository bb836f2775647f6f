"""Vectors of captions, of words in their context, and of pictures with captions, from any transformers model by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from apps.brain_encoders.backbones import first_tensor
from apps.brain_encoders.hub import from_hub
from shared.errors import UserError

__all__ = ["caption_vectors", "hidden_states", "joint_vectors", "word_vectors"]

Vectors = NDArray[np.float32]


@torch.inference_mode()
def caption_vectors(captions: Sequence[str], *, name: str, layer: str = "", pooling: str = "mean", batch_size: int = 32) -> Vectors:
    """[N, C]: of each caption, by a text model.

    Args:
        captions: sentences, none of them empty.
        name: of the model on the hub, or a folder that ``save_pretrained`` wrote (with its tokenizer).
        layer: a module of it by name, such as encoder.layer.7; empty: the last hidden states.
        pooling: "mean" over tokens, "first" token, or "pooler", the model's own.

    Raises:
        UserError: if a caption is empty, or the model cannot be had or has no such layer or pooler.
    """
    _check_captions(captions)
    tokenizer, model = _text_model(name)
    found = []
    for start in range(0, len(captions), batch_size):
        tokens = tokenizer(list(captions[start : start + batch_size]), return_tensors="pt", padding=True, truncation=True)
        hidden, answer = hidden_states(model, dict(tokens), layer)
        if pooling == "pooler":
            pooled = getattr(answer, "pooler_output", None)
            if pooled is None:
                raise UserError(f"{name}: has no pooler. Take pooling mean or first.")
            found.append(pooled)
        elif pooling == "first":
            found.append(hidden[:, 0])
        else:
            weight = tokens["attention_mask"][..., None].to(hidden.dtype)
            found.append((hidden * weight).sum(1) / weight.sum(1))
    return torch.cat(found).float().numpy()


@torch.inference_mode()
def word_vectors(words: Sequence[str], *, name: str, layer: str = "", context: int = 20) -> Vectors:
    """[N, C]: of each word with up to ``context`` words before it, from the state of its last token.

    With onsets these become features of volumes: see ``alignment.lanczos`` and ``alignment.align_to_volumes``.
    """
    tokenizer, model = _text_model(name)
    found = []
    for index in range(len(words)):
        passage = list(words[max(0, index - context) : index + 1])
        tokens = tokenizer(passage, is_split_into_words=True, return_tensors="pt", truncation=True)
        own = [place for place, word in enumerate(tokens.word_ids()) if word == len(passage) - 1]
        if not own:
            raise UserError(f"{name}: its tokenizer makes no token of the word {words[index]!r}.")
        hidden, _ = hidden_states(model, dict(tokens), layer)
        found.append(hidden[0, own[-1]])
    return torch.stack(found).float().numpy()


@torch.inference_mode()
def joint_vectors(pictures: Sequence[NDArray[np.uint8]], captions: Sequence[str], *, name: str) -> Vectors:
    """[N, C]: of each picture together with its caption.

    Of a model that answers both at once (ViLT, FLAVA) the mean of the last hidden states; of one with two sides (CLIP, SigLIP) both
    embeddings, one after the other. Pairs go through the model one by one, so that nothing is padded and no vector depends on others.

    Args:
        pictures: RGB uint8 [H, W, 3].
        captions: as many.
        name: of the model on the hub, or a folder that ``save_pretrained`` wrote (with its processor).

    Raises:
        UserError: if a caption is empty, or the model cannot be had or does not read pictures with captions.
    """
    from transformers import AutoModel, AutoProcessor

    _check_captions(captions)
    processor, model = from_hub(name, AutoProcessor, AutoModel, what="joint model")
    model.eval()
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise UserError(f"{name}: reads no pictures with captions. Take a joint model, such as openai/clip-vit-base-patch32.")
    found = []
    for picture, caption in zip(pictures, captions, strict=True):
        inputs = processor(images=Image.fromarray(picture), text=caption, return_tensors="pt", truncation=True)
        answer = model(**inputs)
        if getattr(answer, "image_embeds", None) is not None:
            found.append(torch.cat([answer.image_embeds, answer.text_embeds], dim=1)[0])
            continue
        states = getattr(answer, "last_hidden_state", None)
        states = getattr(answer, "multimodal_embeddings", None) if states is None else states
        if states is None:
            raise UserError(f"{name}: answers neither with joint hidden states nor with two embeddings. Take another joint model.")
        found.append(states[0].mean(0))
    return torch.stack(found).float().numpy()


def _check_captions(captions: Sequence[str]) -> None:
    empty = sum(not caption.strip() for caption in captions)
    if empty:
        raise UserError(f"{empty} of {len(captions)} stimuli have no caption. Fill the column caption of trials.csv.")


def _text_model(name: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = from_hub(name, AutoTokenizer, AutoModel, what="text model")
    model.eval()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # GPT's have none; padding is masked anyway
    return tokenizer, getattr(model, "text_model", model)


def hidden_states(model: Any, inputs: dict[str, torch.Tensor], layer: str) -> tuple[torch.Tensor, Any]:
    """Hidden states [B, N, C] of the layer, and the whole answer."""
    if not layer:
        answer = model(**inputs)
        return answer.last_hidden_state, answer
    modules = dict(model.named_modules())
    if layer not in modules:
        some = ", ".join([name for name in modules if name and name.count(".") < 3][:30])
        raise UserError(f"text.layer: the network has no module {layer!r}. Some that it has: {some}.")
    seen: list[Any] = []
    hook = modules[layer].register_forward_hook(lambda module, arguments, result: seen.append(result))
    try:
        answer = model(**inputs)
    finally:
        hook.remove()
    return first_tensor(seen[-1]), answer
