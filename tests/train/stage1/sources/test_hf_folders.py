"""Folders of transformers and sentence-transformers as people have them: with code, prompts, stray options."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.encoders.families import Family
from fluxtalk.errors import ArtifactError, CheckpointError, UsageError
from fluxtalk.model.checkpoints.stage1 import load_stage1, save_stage1
from fluxtalk.preprocess import TextPreprocessor
from fluxtalk.preprocess.prompts import Prompting
from fluxtalk.train.stage1.pack import pack_encoders
from fluxtalk.train.stage1.sources.names import parse_source
from fluxtalk.train.stage1.sources.st import open_st

Saved = Callable[[str], tuple[Family, str]]


def copied(source: str, folder: Path) -> Path:
    """Copy the folder that a source names."""
    return Path(shutil.copytree(source.partition(":")[2], folder))


def test_code_of_an_image_processor_is_not_run_unasked(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ran = copied(saved("ViT")[1], tmp_path / "vit"), tmp_path / "ran"
    path = folder / "preprocessor_config.json"
    own = {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    (folder / "own.py").write_text(
        "from transformers import ViTImageProcessor\n"
        f"open({str(ran)!r}, 'w').close()\n"
        "class Own(ViTImageProcessor): pass\n"
    )
    # Left to itself, the library asks on the terminal.
    monkeypatch.setattr("builtins.input", lambda _: "y")
    with pytest.raises(UsageError, match="add --allow-code"):
        pack_encoders({"image": f"hf:{folder}"})
    assert not ran.exists()


@pytest.mark.parametrize("name", ["MiniLM", "T5 encoder", "XLM-R"])
def test_a_tokenizer_that_is_missing_is_not_made_up(saved: Saved, tmp_path: Path, name: str) -> None:
    folder = copied(saved(name)[1], tmp_path / "bare")
    for path in folder.glob("token*"):
        path.unlink()
    with pytest.raises(UsageError, match=r"tokenizer of .* (knows no words|cannot be read)"):
        pack_encoders({"text": f"hf:{folder}?max-length=16"})


OWN_MODEL = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

class OwnConfig(PretrainedConfig):
    model_type = "own"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.words = torch.nn.Embedding(120, 8)
        self.post_init()
    def forward(self, input_ids, attention_mask=None, return_dict=True):
        return BaseModelOutput(last_hidden_state=self.words(input_ids))
"""


def test_a_models_own_code_has_to_stay_where_it_is(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import save_file

    monkeypatch.setenv("FLUXTALK_CONFIG_DIR", str(tmp_path / "config"))
    folder = copied(saved("MiniLM")[1], tmp_path / "own")
    (folder / "modeling_own.py").write_text(OWN_MODEL)
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": own}))
    save_file({"words.weight": torch.randn(120, 8)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="add --allow-code"):
        pack_encoders({"text": f"hf:{folder}"})
    save_stage1(pack_encoders({"text": f"hf:{folder}"}, allow_code=True), tmp_path / "stage1.pth")
    part = load_stage1(tmp_path / "stage1.pth").modalities["text"]
    assert part.build().dim == 8
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="put it back, or pack the model again"):
        part.build()


@pytest.mark.parametrize(
    ("name", "kind", "query", "words"),
    [
        ("ViT", "image", "image-size=64", "image-size, which changes nothing"),
        ("ViT", "image", "max-length=8&padding=fixed", "max-length, padding, which changes nothing"),
        ("MiniLM", "text", "class-tokens=drop", "class-tokens, which changes nothing"),
        ("MiniLM", "text", "background=red", "background, which changes nothing"),
        ("open_clip ViT, text", "text", "max-length=8", "max-length, which changes nothing"),
        ("ViT", "image", "layer=9", r"layers 0 to 2 \(or -1 to -3\); got layer=9"),
    ],
)
def test_options_that_do_not_fit_are_refused(saved: Saved, name: str, kind: str, query: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        pack_encoders({kind: f"{saved(name)[1]}?{query}"})


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [("ViT", "image", "text encoder's"), ("timm ResNet", "image", "text encoder's"), ("MiniLM", "text", "nope")],
)
def test_prompts_that_nothing_would_use_are_refused(saved: Saved, name: str, kind: str, words: str) -> None:
    with pytest.raises((UsageError, ArtifactError), match=words):
        pack_encoders({kind: saved(name)[1]}, default_prompts={kind: "nope"})


def prompts_of(
    saved: Saved, folder: Path, own: dict[str, str], default: str | None, given: dict[str, str] | None = None
) -> TextPreprocessor:
    """Open a model as sentence-transformers saves it, with prompts of its own and some that were given beside."""
    copied(saved("MiniLM")[1], folder)
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    (folder / "modules.json").write_text(json.dumps([module]))
    config = {"prompts": own, "default_prompt_name": default}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    preprocess = open_st(parse_source(f"st:{folder}"), "text", prompts=given).preprocess
    assert isinstance(preprocess, TextPreprocessor)
    return preprocess


def prefix(preprocess: TextPreprocessor, role: str) -> str:
    """Name the words that a role puts before a text."""
    applied = Prompting(role).apply(preprocess)
    assert isinstance(applied, TextPreprocessor)
    return applied.prompt


def test_an_empty_prompt_of_a_role_is_none_and_not_the_default(saved: Saved, tmp_path: Path) -> None:
    found = prompts_of(saved, tmp_path / "a", {"query": "w1 ", "document": ""}, "query")
    assert (prefix(found, "query"), prefix(found, "document"), found.prompt) == ("w1 ", "", "w1 ")
    found = prompts_of(saved, tmp_path / "b", {"query": "w1 ", "document": ""}, "document")
    assert (prefix(found, "query"), found.prompt) == ("w1 ", "")
    # What sentence-transformers saves for a model that has none.
    assert prompts_of(saved, tmp_path / "c", {"query": "", "document": ""}, None).prompts == {}


def test_a_prompt_that_is_given_leaves_the_models_others(saved: Saved, tmp_path: Path) -> None:
    found = prompts_of(saved, tmp_path / "a", {"query": "w1 ", "passage": "w2 "}, None, {"query": "w3 "})
    assert (prefix(found, "query"), prefix(found, "document")) == ("w3 ", "w2 ")
