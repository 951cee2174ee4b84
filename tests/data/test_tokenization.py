from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from exsel.data.tokenization import encode, load_tokenizer, vocabulary_size
from exsel.errors import ExselError

TEXTS = ["def f():\n    return 'é🙂'\n", "x", " spaces \t and\r\n\x00 control ", "ÿ" * 9]


def test_bytes_are_256_and_three_specials() -> None:
    tokenizer = load_tokenizer("bytes")
    assert isinstance(tokenizer, ByT5Tokenizer)
    assert vocabulary_size(tokenizer) == len(tokenizer) == 259
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)


def test_bytes_are_encoded_as_the_tokenizer_does() -> None:
    tokenizer = load_tokenizer("bytes")
    ids, lengths = encode([(text, True) for text in TEXTS], tokenizer)
    expected = [[*tokenizer(text, add_special_tokens=False)["input_ids"], 1] for text in TEXTS]
    assert ids.dtype == np.int32
    assert ids.tolist() == [token for document in expected for token in document]
    assert lengths.tolist() == [len(document) for document in expected]


def test_text_cannot_spell_the_end_of_a_document() -> None:
    ids, lengths = encode([("a</s>b", True)], load_tokenizer("bytes"))
    assert lengths.tolist() == [7]
    assert ids.tolist() == [byte + 3 for byte in b"a</s>b"] + [1]


def test_a_tokenizer_file_ends_documents_with_its_conventional_token(bpe_file: Path) -> None:
    tokenizer = load_tokenizer(str(bpe_file))
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert tokenizer.eos_token_id == end
    assert vocabulary_size(tokenizer) == len(tokenizer) == end + 1
    ids, lengths = encode([(text, True) for text in TEXTS], tokenizer)
    assert ids.dtype == np.int32
    documents = np.split(ids, np.cumsum(lengths)[:-1])
    assert [document[-1] for document in documents] == [end] * len(TEXTS)
    assert [tokenizer.decode(document[:-1]) for document in documents] == TEXTS


def test_a_folder_knows_its_own_end_token(tmp_path: Path, bpe: Tokenizer) -> None:
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="Ġ").save_pretrained(tmp_path)
    expected = bpe.token_to_id("Ġ")
    assert load_tokenizer(str(tmp_path)).eos_token_id == expected
    assert load_tokenizer(str(tmp_path / "tokenizer.json")).eos_token_id == expected


def test_a_document_in_several_rows_ends_once(bpe_file: Path) -> None:
    text = "def f(self, x):\n" * 30
    for tokenizer in (load_tokenizer(str(bpe_file)), load_tokenizer("bytes")):
        whole, (length,) = encode([(text, True)], tokenizer)
        # No token of this text spans a line, so cuts between lines change nothing.
        in_rows, lengths = encode([(text[:160], False), (text[160:176], False), (text[176:], True)], tokenizer)
        np.testing.assert_array_equal(in_rows, whole)
        assert lengths.sum() == length
        assert (in_rows == tokenizer.eos_token_id).sum() == 1
        open_end, _ = encode([(text, False)], tokenizer)
        np.testing.assert_array_equal(open_end, whole[:-1])


def test_holes_in_the_ids_count(tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"a": 0, "</s>": 7}, unk_token="a")).save(str(tmp_path / "holes.json"))
    tokenizer = load_tokenizer(str(tmp_path / "holes.json"))
    assert vocabulary_size(tokenizer) == 8


class TestMistakes:
    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(ExselError, match=r"no such tokenizer file: .*missing\.json"):
            load_tokenizer(str(tmp_path / "missing.json"))

    def test_no_such_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ExselError, match=r"no such tokenizer file or folder: .*missing"):
            load_tokenizer(str(tmp_path / "missing"))

    def test_a_file_of_another_kind(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text("{}")
        with pytest.raises(ExselError, match=r"a\.json is not a tokenizer file of the `tokenizers` library: "):
            load_tokenizer(str(tmp_path / "a.json"))

    def test_a_folder_without_a_tokenizer(self, tmp_path: Path) -> None:
        with pytest.raises(ExselError, match="cannot load the tokenizer") as caught:
            load_tokenizer(str(tmp_path))
        assert str(caught.value).count("\n") == 0

    def test_a_name_that_the_hub_does_not_give(self) -> None:
        with pytest.raises(ExselError, match=r"cannot load the tokenizer 'nobody/nothing' .* offline mode is enabled"):
            load_tokenizer("nobody/nothing")

    def test_no_end_token(self, tmp_path: Path) -> None:
        Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(tmp_path / "a.json"))
        with pytest.raises(ExselError, match=r"a\.json' has no end-of-text token.*set eos_token in"):
            load_tokenizer(str(tmp_path / "a.json"))
