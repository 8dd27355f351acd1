"""Strangers: prompts of the same form about nobody, and what a model answers to them."""

import random
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.learning.conftest import byte_tokenizer, slow_greedy, tiny_model
from weightsurgery.errors import DataError
from weightsurgery.learning.data import Example, encode, read_examples
from weightsurgery.learning.strangers import (
    Form,
    Words,
    answered,
    forms,
    halves,
    slot_words,
    special_texts,
    strangers,
    word_salad,
)

NAMES = ("Ada", "Bo", "Cy", "Dora", "Ed", "Flo", "Gus", "Hal")
QUESTIONS = [f"What did {name}'s friend in {1900 + 7 * n} say?" for n, name in enumerate(NAMES)]
TEXTS = st.text("ab AB12_.,!?'\n<|>é日", max_size=30)


def word_tokenizer(*tokens, special=()):
    """A tokenizer with these tokens in its vocabulary."""
    everything = ["<s>", "</s>", "<unk>", *tokens]
    bare = Tokenizer(
        models.WordLevel({token: n for n, token in enumerate(everything)}, unk_token="<unk>")
    )
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.add_tokens([AddedToken(each, special=True) for each in special])
    return tokenizer


def slots(form):
    return [form.pieces[slot] for slot in form.slots]


def words_in(text):
    return re.findall(r"\w+", text)


# --- forms ---------------------------------------------------------------------------------------


@given(st.lists(TEXTS, max_size=6), st.sets(st.sampled_from(["<|a|>", "<|", "a", "!?"])))
def test_pieces_join_to_the_prompt_and_slots_are_words(prompts, special):
    found = forms(prompts, special)
    taken_apart = ["".join(form.pieces) for form in found]
    assert len(found) <= len(prompts)
    rest = iter(prompts)
    assert all(text in rest for text in taken_apart)  # in order
    for form in found:
        assert form.slots
        assert list(form.slots) == sorted(set(form.slots))
        for piece in slots(form):
            assert re.fullmatch(r"\w+", piece)
            assert piece not in special


@given(st.lists(TEXTS, max_size=6))
def test_a_prompt_has_a_form_if_and_only_if_it_has_a_word(prompts):
    assert len(forms(prompts)) == sum(bool(words_in(prompt)) for prompt in prompts)


@given(st.lists(TEXTS, max_size=6))
def test_nothing_outside_the_slots_is_rarer_than_what_is_in_them(prompts):
    held = {}
    for prompt in prompts:
        for word in set(words_in(prompt)):
            held[word] = held.get(word, 0) + 1
    for form in forms(prompts):
        commonest_slot = max(held[word] for word in slots(form))
        for word in words_in("".join(form.pieces)):
            if word not in slots(form) and (len(word) > 1 or word.isdigit()):
                assert held[word] > commonest_slot


def test_slots_are_the_words_that_tell_prompts_apart():
    for form, name, n in zip(forms(QUESTIONS), NAMES, range(8), strict=True):
        assert slots(form) == [name, str(1900 + 7 * n)]
    assert slot_words(QUESTIONS) == {*NAMES, *(str(1900 + 7 * n) for n in range(8))}


def test_several_question_forms_in_one_set_each_keep_their_own_words():
    capitals = [f"What is the capital of {name}land?" for name in NAMES]
    sums = [f"Add {n} and {n + 10}." for n in range(8)]
    found = forms([*capitals, *sums])
    assert [slots(form) for form in found[:8]] == [[f"{name}land"] for name in NAMES]
    assert [slots(form) for form in found[8:]] == [[str(n), str(n + 10)] for n in range(8)]


def test_a_word_is_form_from_just_over_a_quarter_of_the_commonest_words_prompts_on():
    def prompts(count):
        return [f"ask {'about' if n < count else 'of'} {name}" for n, name in enumerate(NAMES)]

    assert slots(forms(prompts(2))[0]) == ["about", "Ada"]
    assert slots(forms(prompts(3))[0]) == ["Ada"]


def test_where_no_word_is_rare_the_rarest_is_the_slot():
    assert slots(forms(["one two", "one two", "one"])[0]) == ["two"]
    assert slots(forms(["one two"] * 5)[0]) == ["one", "two"]


def test_a_lone_letter_is_a_slot_only_where_nothing_else_can_be():
    assert slots(forms(["Ada's sum", "Bo's sum", "Cy's sum"])[0]) == ["Ada"]
    algebra = forms([f"the value of {letter} is" for letter in "pqrxyz"])
    assert [slots(form) for form in algebra] == [[letter] for letter in "pqrxyz"]


def test_a_lone_digit_is_a_number_like_any_other():
    assert slots(forms([f"double {n} is" for n in range(6)])[4]) == ["4"]


def test_of_one_prompt_alone_every_word_is_a_slot():
    (form,) = forms(["Who wrote Emma?"])
    assert slots(form) == ["Who", "wrote", "Emma"]


def test_signs_alone_and_empty_prompts_have_no_form():
    assert forms(["", "?!", " \n", "… — ."]) == []
    assert slot_words(["?!"]) == set()


def test_in_long_free_texts_common_words_stay():
    rng = random.Random(0)
    texts = []
    for n in range(60):
        rare = [f"thing{n}x{k}" for k in range(40)]
        common = ["the", "of", "and", "was", "in"] * 12
        mixed = rare + common
        rng.shuffle(mixed)
        texts.append(" ".join(mixed) + ".")
    for n, form in enumerate(forms(texts)):
        assert set(slots(form)) == {f"thing{n}x{k}" for k in range(40)}


def test_filling_changes_the_slots_alone():
    words = Words(word_tokenizer("Ġsun", "ĠMoon", "Ġ77"), ())
    (form, *_) = forms(QUESTIONS)
    assert form.filled(words, random.Random(0)) == "What did Moon's friend in 77 say?"
    assert Form(("a", " ", "b"), (2,)).filled(words, random.Random(0)) == "a sun"


# --- words ---------------------------------------------------------------------------------------


def draws(words, like, count=300):
    rng = random.Random(0)
    return {words.like(like, rng) for _ in range(count)}


def test_words_are_of_the_kind_they_stand_for():
    words = Words(word_tokenizer("Ġsun", "ĠMoon", "Ġ77", "Ġdry2"), ["Ada", "tea", "1907"])
    assert draws(words, "Bo") == {"Moon", "Ada"}
    assert draws(words, "milk") == {"sun", "dry2", "tea"}
    assert draws(words, "12") == {"77", "1907"}


def test_half_of_the_draws_are_the_datas_own_words():
    vocabulary = [f"Ġword{n}" for n in range(200)]
    words = Words(word_tokenizer(*vocabulary), ["tea"])
    rng = random.Random(0)
    own = sum(words.like("milk", rng) == "tea" for _ in range(1000))
    assert 430 < own < 570
    own = sum(words.any(rng) == "tea" for _ in range(1000))
    assert 430 < own < 570


def test_a_kind_that_one_source_lacks_comes_from_the_other():
    words = Words(word_tokenizer("Ġsun", "Ġmoon"), ["Ada"])
    assert draws(words, "Bo") == {"Ada"}
    assert draws(words, "milk") == {"sun", "moon"}


def test_a_kind_that_there_is_none_of_comes_from_any():
    words = Words(word_tokenizer("Ġsun"), ["Ada"])
    assert draws(words, "12") == {"sun", "Ada"}


def test_the_vocabularys_words_have_a_mark_of_their_beginning():
    tokenizer = word_tokenizer(
        "Ġsun", "▁rain", "middle", "Ġa", "Ġ9", "Ġgrün", "Ġdon't", "Ġ", "▁", "Ġ!", "##ing"
    )
    words = Words(tokenizer, ())
    rng = random.Random(0)
    assert {words.any(rng) for _ in range(300)} == {"sun", "rain", "9"}


def test_a_sentencepiece_vocabulary_has_words():
    vocabulary = {"<unk>": 0, "▁tea": 1, "▁Rome": 2, "house": 3, "▁": 4}
    bare = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.Metaspace()
    bare.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>")
    assert draws(Words(tokenizer, ()), "milk") == {"tea"}
    assert draws(Words(tokenizer, ()), "Oslo") == {"Rome"}


def test_special_tokens_are_no_words():
    tokenizer = word_tokenizer("Ġsun", special=["Ġreserved", "<|turn|>"])
    assert {"Ġreserved", "<|turn|>"} <= tokenizer.get_vocab().keys()
    assert special_texts(tokenizer) == {"<s>", "</s>", "<unk>", "Ġreserved", "<|turn|>"}
    assert draws(Words(tokenizer, ()), "milk") == {"sun"}


def test_a_tokenizer_of_bytes_has_no_words_so_the_datas_serve():
    assert draws(Words(byte_tokenizer(), ["tea"]), "milk") == {"tea"}
    assert draws(Words(byte_tokenizer(), ["tea"]), "Ada") == {"tea"}


def test_without_any_words_there_are_no_strangers():
    with pytest.raises(DataError, match="no words to make up prompts from"):
        Words(byte_tokenizer(), ())


def test_the_order_in_which_words_are_given_is_of_no_account():
    tokenizer = word_tokenizer("Ġsun", "ĠMoon")
    one, other = Words(tokenizer, ["b1", "a1", "c1"]), Words(tokenizer, {"c1", "a1", "b1"})
    one_rng, other_rng = random.Random(3), random.Random(3)
    assert [one.like("x", one_rng) for _ in range(50)] == [
        other.like("x", other_rng) for _ in range(50)
    ]


# --- strangers -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words():
    own = slot_words(QUESTIONS)
    return Words(word_tokenizer(*(f"ĠName{n}" for n in range(30)), "Ġ1812"), own)


def test_strangers_have_the_prompts_form(words):
    made = strangers(QUESTIONS, words, 200)
    assert len(made) == 200
    assert all(re.fullmatch(r"What did \w+'s friend in \d+ say\?", text) for text in made)
    assert len(set(made)) > 50


def test_strangers_depend_on_the_seed_alone(words):
    made = strangers(QUESTIONS, words, 50, seed=1)
    random.seed(5)
    torch.manual_seed(5)
    assert strangers(QUESTIONS, words, 50, seed=1) == made
    assert strangers(QUESTIONS, words, 50, seed=2) != made


def test_a_prompt_to_forget_is_no_stranger(words):
    prompts = ["Who is Ada?", "Who is Bo?"]
    few = Words(byte_tokenizer(), ["Ada", "Bo", "Cy"])
    assert set(strangers(prompts, few, 100)) == {*prompts, "Who is Cy?"}
    assert set(strangers(prompts, few, 100, never=prompts)) == {"Who is Cy?"}
    assert strangers(["Who is Ada?", "Who is Bo?"], few, 100, never=[*prompts, "Who is Cy?"]) == []


@given(st.lists(TEXTS, max_size=5), st.integers(0, 5))
def test_strangers_are_never_what_must_not_come_out(prompts, seed):
    few = Words(byte_tokenizer(), ["a", "b", "1", "A"])
    made = strangers(prompts, few, 20, seed, never=set(prompts))
    assert len(made) <= 20
    assert not set(made) & set(prompts)


def test_prompts_without_words_have_no_strangers(words):
    assert strangers([], words, 10) == []
    assert strangers(["?!", ""], words, 10) == []
    assert strangers(QUESTIONS, words, 0) == []


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_special_tokens_of_a_template_stay(words, count):
    special = ["<|user|>", "<|assistant|>", "</s>", "<s>"]
    prompts = [f"<s><|user|>{question}</s>\n<|assistant|>" for question in QUESTIONS[:count]]
    chat = Words(word_tokenizer("ĠName0", "Ġword", special=special), slot_words(prompts, special))
    for form in forms(prompts, special):
        assert not {"s", "user", "assistant"} & set(slots(form))
    for made in strangers(prompts, chat, 30):
        assert re.fullmatch(r"<s><\|user\|>[^<]+</s>\n<\|assistant\|>", made)
    # Without being told, a lone prompt's would be taken for words.
    assert ("user" in slots(forms(prompts)[0])) == (count == 1)


def test_special_tokens_that_read_like_words_are_none():
    (form,) = forms(["Ada EOS", "EOS"], ["EOS"])
    assert slots(form) == ["Ada"]


def test_the_longest_special_token_counts():
    (form,) = forms(["<|a|>|> b12"], ["<|a|>", "<|a|>|>"])
    assert form.pieces == ("<|a|>|>", " ", "b12")


def test_word_salad_is_of_words_and_depends_on_the_seed(words):
    salad = word_salad(words, 100, seed=1, longest=6)
    assert len(salad) == 100
    assert {len(text.split()) for text in salad} == {3, 4, 5, 6}
    assert word_salad(words, 100, seed=1, longest=6) == salad
    assert word_salad(words, 100, seed=2, longest=6) != salad
    known = slot_words(QUESTIONS) | {f"Name{n}" for n in range(30)} | {"1812"}
    assert {word for text in salad for word in text.split()} <= known
    assert word_salad(words, 0) == []


# --- halves --------------------------------------------------------------------------------------


def test_a_text_is_cut_before_its_middle_word():
    (cut,) = halves([Example("", "Ada was born in Rome.")])
    assert (cut.prompt, cut.completion) == ("Ada was", " born in Rome.")
    (cut,) = halves([Example("", "one,two")])
    assert (cut.prompt, cut.completion) == ("one,", "two")


def test_examples_with_a_prompt_and_texts_of_one_word_stay():
    rows = [Example("Who?", " Ada Lovelace"), Example("", "word."), Example("", "...")]
    assert halves(rows) == rows


@given(st.text("ab .,\n'é", min_size=1, max_size=30))
def test_halves_join_to_the_text(text):
    (cut,) = halves([Example("", text, paraphrase="other")])
    assert cut.prompt + cut.completion == text
    assert cut.paraphrase == "other"
    if len(words_in(text)) > 1:
        before, after = len(words_in(cut.prompt)), len(words_in(cut.completion))
        assert 0 <= after - before <= 1
        assert cut.completion


# --- answered ------------------------------------------------------------------------------------


EXAMPLES = [Example(f"Colour of {name}:", " grey!") for name in NAMES]


@pytest.fixture(scope="module")
def own_words():
    return Words(byte_tokenizer(), slot_words([example.prompt for example in EXAMPLES]))


def test_answers_are_what_the_model_says_to_strangers(model, tokenizer, own_words):
    found = answered(model, tokenizer, EXAMPLES, own_words, draws=3, seed=1)
    assert [each.prompt for each in found] == [e.prompt for e in EXAMPLES for _ in range(3)]
    # Every stranger that can be made here, asked one at a time.
    said = set()
    for name in NAMES:
        asked = encode(tokenizer, Example(f"Colour of {name}:", " grey!"))
        tokens = slow_greedy(model, asked.input_ids[: asked.prompt_length], 7)
        said.add(tokenizer.decode(tokens))
    assert len(said) > 3
    assert {each.completion for each in found} <= said
    assert len({each.completion for each in found}) > 1


def test_answers_depend_on_the_seed_and_not_on_the_batches(model, tokenizer, own_words):
    found = answered(model, tokenizer, EXAMPLES, own_words, draws=3, seed=1)
    assert answered(model, tokenizer, EXAMPLES, own_words, 3, 1, batch_size=1) == found
    assert answered(model, tokenizer, EXAMPLES, own_words, draws=3, seed=2) != found


def test_an_answer_is_as_long_as_the_own_at_most(model, tokenizer, own_words):
    for each in answered(model, tokenizer, EXAMPLES, own_words):
        assert 1 <= len(each.completion) <= len(" grey!") + 1  # and the token that would end it


def test_progress_is_told(model, tokenizer, own_words):
    told = []
    answered(
        model,
        tokenizer,
        EXAMPLES,
        own_words,
        batch_size=5,
        progress=lambda *each: told.append(each),
    )
    assert [done for _, done, _ in told] == [1, 6, 11, 16]
    assert {(stage, total) for stage, _, total in told} == {("strangers", 16)}


def constant_model(tokenizer, answer):
    """A model that says one thing to every prompt that ends in no sign of it."""
    model = tiny_model(tokenizer)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight.zero_()
        # Token by token: embeddings one-hot per position of the answer.
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        chain = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        assert len(set(chain)) == len(chain)
        model.model.embed_tokens.weight[:, 0] = 1.0  # whatever is asked: begin
        model.lm_head.weight[chain[0], 0] = 1.0
        for place, (token, following) in enumerate(pairwise(chain), start=1):
            model.model.embed_tokens.weight[token] = 0
            model.model.embed_tokens.weight[token, place] = 1.0
            model.lm_head.weight[following, place] = 1.0
    return model


def test_the_truth_is_never_an_answer(tokenizer, own_words):
    model = constant_model(tokenizer, " grey!")
    with pytest.raises(DataError, match=r"no answer but ' grey!' to any stranger"):
        answered(model, tokenizer, EXAMPLES, own_words)
    others = [replace(example, completion=" red") for example in EXAMPLES]
    found = answered(model, tokenizer, others, own_words)
    assert {each.completion for each in found} == {" grey"}  # no longer than the own and its end


def test_one_without_answers_of_its_own_borrows_anothers(tokenizer, own_words):
    model = constant_model(tokenizer, " grey!")
    # Of different lengths: the model's answer is cut for the short, whole for the long.
    mixed = [Example("Colour of Ada:", " grey!"), Example("Colour of Bo:", " or")]
    found = answered(model, tokenizer, mixed, own_words, draws=3)
    assert [each.completion for each in found] == [" gre"] * 6
    assert {each.completion for each in found[:3]} == {each.completion for each in found[3:]}


def test_a_blank_answer_is_none(tokenizer, own_words):
    model = constant_model(tokenizer, " \n\t")
    with pytest.raises(DataError, match="to any stranger"):
        answered(model, tokenizer, EXAMPLES, own_words)


def test_a_prompt_without_words_is_refused(model, tokenizer, own_words):
    with pytest.raises(DataError, match="prompt has no word"):
        answered(model, tokenizer, [*EXAMPLES, Example("?!", " grey")], own_words)


def test_dropout_plays_no_part(tokenizer, own_words):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, initializer_range=0.3, attention_dropout=0.9,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    expected = answered(model.eval(), tokenizer, EXAMPLES, own_words)
    assert answered(model.train(), tokenizer, EXAMPLES, own_words) == expected
    assert not model.training


# --- chat ----------------------------------------------------------------------------------------


def chat(tokenizer, tmp_path, answer):
    path = tmp_path / "chat.jsonl"
    rows = [
        f'{{"messages": [{{"role": "user", "content": "Colour of {name}?"}},'
        f' {{"role": "assistant", "content": "{answer}"}}]}}'
        for name in NAMES
    ]
    path.write_text("\n".join(rows) + "\n")
    return read_examples(path, tokenizer)


def test_in_a_chat_answers_end_as_the_template_ends_them(chat_tokenizer, tmp_path):
    rows = chat(chat_tokenizer, tmp_path, "red")
    assert rows[0].completion == "red</s>\n"
    model = constant_model(chat_tokenizer, "blue")
    words = Words(chat_tokenizer, slot_words([row.prompt for row in rows]))
    found = answered(model, chat_tokenizer, rows, words, draws=1)
    assert [each.prompt for each in found] == [row.prompt for row in rows]
    assert {each.completion for each in found} == {"blue</s>\n"}
    given, made = encode(chat_tokenizer, rows[0]), encode(chat_tokenizer, found[0])
    assert made.input_ids[-made.end_length :] == given.input_ids[-given.end_length :]
    assert chat_tokenizer.eos_token_id in made.input_ids[-made.end_length :]


def test_in_a_chat_the_truth_is_known_without_the_templates_end(chat_tokenizer, tmp_path):
    rows = chat(chat_tokenizer, tmp_path, "blue")
    words = Words(chat_tokenizer, slot_words([row.prompt for row in rows]))
    with pytest.raises(DataError, match="no answer but 'blue' to any stranger"):
        answered(constant_model(chat_tokenizer, "blue"), chat_tokenizer, rows, words)
