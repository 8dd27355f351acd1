import pytest
import torch

from weightsurgery.checkpoint.reader import Checkpoint
from weightsurgery.checkpoint.tied import is_tied, same_bytes, stored_name, tied_copies

from ..conftest import write_checkpoint

TIED = {"tie_word_embeddings": True}


def opened(directory, tensors, config=None, **options):
    return Checkpoint.open(write_checkpoint(directory, tensors, config=config, **options))


def matrix(seed=0, rows=6, dtype=torch.float32):
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_same_bytes(tmp_path):
    large = torch.zeros(2_200_000)  # over two blocks of reading
    late = large.clone()
    late[-1] = 1
    tensors = {
        "a": matrix(),
        "b": matrix(),
        "c": matrix(1),
        "d": matrix().reshape(4, 6),
        "e": matrix().view(torch.int32),
        "large": large,
        "large.same": large,
        "large.late": late,
        "zero": torch.zeros(0, 4),
        "zero.too": torch.zeros(0, 4),
    }
    checkpoint = opened(tmp_path, tensors, shards=2)
    pairs = [("a", "b"), ("a", "c"), ("a", "d"), ("a", "e"), ("large", "large.same")]
    pairs += [("large", "large.late"), ("zero", "zero.too")]
    found = {pair: same_bytes(checkpoint, *pair) for pair in pairs}
    assert [pair for pair, same in found.items() if same] == [
        ("a", "b"),
        ("large", "large.same"),
        ("zero", "zero.too"),
    ]


@pytest.mark.parametrize(
    ("head", "embedding"),
    [
        ("lm_head.weight", "model.embed_tokens.weight"),
        ("lm_head.weight", "model.decoder.embed_tokens.weight"),  # OPT
        ("lm_head.weight", "transformer.wte.weight"),
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("lm_head.weight", "shared.weight"),
        ("proj_out.weight", "model.decoder.embed_tokens.weight"),  # Whisper
    ],
)
def test_a_stored_head_is_a_copy_of_its_embedding(tmp_path, head, embedding):
    tensors = {head: matrix(), embedding: matrix(), "model.layers.0.mlp.up_proj.weight": matrix()}
    assert tied_copies(opened(tmp_path / "a", tensors, TIED)) == {head: embedding}
    nested = {"text_config": TIED}
    assert tied_copies(opened(tmp_path / "b", tensors, nested)) == {head: embedding}
    assert tied_copies(opened(tmp_path / "c", tensors, {"tie_word_embeddings": False})) == {}
    # GPT-2's config does not say it: equal bytes do.
    assert tied_copies(opened(tmp_path / "d", tensors)) == {head: embedding}
    trained_apart = {**tensors, head: matrix(1)}
    assert tied_copies(opened(tmp_path / "e", trained_apart, TIED)) == {}


def test_position_embeddings_are_no_twins(tmp_path):
    """GPT-2's positions have as many rows as its tokens here, and the same numbers."""
    tensors = {"wpe.weight": matrix(), "wte.weight": matrix(), "lm_head.weight": matrix()}
    assert tied_copies(opened(tmp_path, tensors, TIED)) == {"lm_head.weight": "wte.weight"}


def test_where_a_name_is_stored(tmp_path):
    both = {"wte.weight": matrix(), "wpe.weight": matrix(1), "lm_head.weight": matrix(2)}
    apart = opened(tmp_path / "base", both)
    gpt2 = opened(tmp_path / "a", {"wte.weight": matrix(), "wpe.weight": matrix(1)}, TIED)
    assert stored_name(gpt2, "wte.weight", apart) == "wte.weight"
    assert stored_name(gpt2, "lm_head.weight", apart) == "wte.weight"
    assert stored_name(gpt2, "h.0.mlp.c_fc.weight", apart) is None
    head_only = opened(tmp_path / "b", {"lm_head.weight": matrix()}, TIED)
    assert stored_name(head_only, "model.embed_tokens.weight", apart) == "lm_head.weight"
    assert stored_name(head_only, "embeddings.position_embeddings.weight", apart) is None
    assert stored_name(head_only, "cls.predictions.decoder.bias", apart) is None
    untied = opened(tmp_path / "c", {"wte.weight": matrix()}, {"tie_word_embeddings": False})
    assert stored_name(untied, "lm_head.weight", apart) is None


def test_without_a_word_in_the_config_the_other_model_decides(tmp_path):
    unsaid = opened(tmp_path / "unsaid", {"wte.weight": matrix()})
    both = {"wte.weight": matrix(3), "lm_head.weight": matrix(3)}
    copies = opened(tmp_path / "copies", both)
    assert stored_name(unsaid, "lm_head.weight", copies) == "wte.weight"
    one = opened(tmp_path / "one", {"lm_head.weight": matrix()})
    assert stored_name(unsaid, "lm_head.weight", one) == "wte.weight"
    # A head trained apart from its embedding is missing, not replaced by the embedding.
    apart = opened(tmp_path / "apart", {**both, "lm_head.weight": matrix(4)})
    assert stored_name(unsaid, "lm_head.weight", apart) is None


def test_two_possible_twins_are_not_guessed_between(tmp_path):
    like = opened(tmp_path / "like", {"lm_head.weight": matrix()})
    one = {"encoder.embed_tokens.weight": matrix()}
    assert stored_name(opened(tmp_path / "a", one, TIED), "lm_head.weight", like) in one
    two = {**one, "decoder.embed_tokens.weight": matrix(1)}
    assert stored_name(opened(tmp_path / "b", two, TIED), "lm_head.weight", like) is None


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
OTHERS = {"model.layers.0.mlp.up_proj.weight": matrix(), "model.embed_positions.weight": matrix()}


@pytest.mark.parametrize(
    ("tensors", "config", "tied"),
    [
        ({EMBEDDING: matrix()}, {}, {EMBEDDING}),
        ({EMBEDDING: matrix()}, {"tie_word_embeddings": False}, set()),
        ({HEAD: matrix()}, TIED, {HEAD}),
        ({EMBEDDING: matrix(), HEAD: matrix()}, {}, {EMBEDDING, HEAD}),
        ({EMBEDDING: matrix(), HEAD: matrix()}, {"tie_word_embeddings": False}, set()),
        ({EMBEDDING: matrix(), HEAD: matrix(1)}, TIED, set()),
        ({"shared.weight": matrix(), HEAD: matrix(1)}, {"is_encoder_decoder": True},
         {"shared.weight", HEAD}),
        ({"shared.weight": matrix(), HEAD: matrix(1)},
         {"is_encoder_decoder": True, "tie_word_embeddings": False}, {"shared.weight"}),
    ],
)  # fmt: skip
def test_what_is_embedding_and_head_in_one(tmp_path, tensors, config, tied):
    checkpoint = opened(tmp_path, {**OTHERS, **tensors}, config)
    assert {name for name in checkpoint.entries if is_tied(checkpoint, name)} == tied
