"""Which files beside the weights belong to a model, and which never do."""

import os
import time

import pytest

from weightsurgery.checkpoint.companions import companion_kind, companions
from weightsurgery.errors import CorruptCheckpointError

from .handmade import directory, says

COMPANIONS = """config.json generation_config.json tokenizer.json tokenizer_config.json vocab.json
merges.txt special_tokens_map.json tokenizer.model spiece.model source.spm chat_template.jinja
qwen.tiktoken LICENSE LICENSE.md NOTICE.txt license.txt USE_POLICY.md
preprocessor_config.json modules.json 1_Pooling/config.json
sentence_bert_config.json params.json additional_chat_templates/tool.jinja
config_sentence_transformers.json LICENSE-2.0 COPYING.LESSER LICENSE_llama.v2.txt vocab.txt
added_tokens.json tekken.json SYSTEM_PROMPT.txt sentencepiece.bpe.model bpe.codes"""
STRANGERS = """pytorch_model.bin pytorch_model.bin.index.json model.safetensors
model.safetensors.index.json model.safetensors.index.fp16.json flax_model.msgpack.index.json
tf_model.h5 optimizer.pt scheduler.pt training_args.bin trainer_state.json all_results.json
README.md .gitattributes .git/config.json checkpoint-500/config.json checkpoint-500/optimizer.pt
runs/events.json original/params.json onnx/config.json __pycache__/modeling_custom.py
weightsurgery.json adapter_config.json adapter_model.safetensors .cache/huggingface/x.json
model.gguf image.png rng_state.pth modeling_custom.py configuration_custom.py
usercustomize.py sitecustomize.py setup.py sub/evil.py env.txt hf_token.txt secrets.json
notice.safetensors sub/COPYING.safetensors LICENSE.bin NOTICE.pt NOTICE.pth Copying.PTH
LICENSE.desktop LICENSE.py COPYING.sh NOTICE.so LICENSE.pkl notice.npz LICENSE.onnx copying.exe
LICENSE-a.pth noticeboard.html LICENSE.safetensors.index.json tokenizer.model.bin"""


def test_companion_files(tmp_path):
    root = directory(tmp_path, dict.fromkeys([*COMPANIONS.split(), *STRANGERS.split()], b"x"))
    found = companions(root)
    assert list(found.files) == sorted(COMPANIONS.split())
    assert found.code == ()
    assert {"env.txt", "secrets.json", "modeling_custom.py"} <= set(found.others)


@pytest.mark.parametrize("name", ["LICENSE" + "-" * 9000, "a_" * 9000 + "config.json!", "." * 9000])
def test_a_name_is_looked_at_in_no_time(name):
    begun = time.monotonic()
    companion_kind(name)
    companion_kind(name[:255])
    assert time.monotonic() - begun < 1


def test_linked_companions_are_found_as_files(tmp_path):
    blob = directory(tmp_path / "blobs", {"abc": "{}"}) / "abc"
    snapshot = tmp_path / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to(blob)
    (snapshot / "README.md").symlink_to(blob)
    assert companions(snapshot).files == ("config.json",)


def outside(root):
    secret = root.parent / "secret.json"
    secret.write_text("{}")
    (root / "config.json").symlink_to(secret)


def relative(root):
    (root.parent / "secret").write_text("{}")
    (root / "LICENSE").symlink_to("../secret")


def by_a_folder(root):
    directory(root.parent / "home", {"vocab.txt": "x"})
    (root / "1_Pooling").mkdir()
    (root / "1_Pooling" / "vocab.txt").symlink_to("../../home/vocab.txt")


def the_process(root):
    (root / "LICENSE.txt").symlink_to("/proc/self/environ")


def a_blob_that_is_a_link(root):
    """As in a Hub's cache, but what lies there leads on."""
    (root.parent.parent / "blobs").mkdir()
    (root.parent.parent / "blobs" / "x").symlink_to("/proc/self/environ")
    (root / "merges.txt").symlink_to("../../blobs/x")


def a_linked_folder_of_blobs(root):
    (root.parent.parent / "blobs").symlink_to("/proc/self")
    (root / "merges.txt").symlink_to("../../blobs/environ")


def nowhere(root):
    (root / "config.json").symlink_to("gone.json")


def itself(root):
    (root / "config.json").symlink_to("config.json")


def a_pipe(root):
    os.mkfifo(root / "LICENSE")


def a_link_to_a_device(root):
    (root / "vocab.txt").symlink_to("/dev/zero")


def a_linked_pipe(root):
    os.mkfifo(root / "pipe")
    (root / "NOTICE").symlink_to("pipe")


@pytest.mark.parametrize(
    "lay",
    [
        outside, relative, by_a_folder, the_process, a_blob_that_is_a_link, a_pipe,
        a_linked_folder_of_blobs, nowhere, itself, a_link_to_a_device, a_linked_pipe,
    ],
)  # fmt: skip
def test_companions_that_lead_elsewhere_are_refused(tmp_path, lay):
    root = tmp_path / "snapshots" / "base"
    root.mkdir(parents=True)
    lay(root)
    with pytest.raises(CorruptCheckpointError) as error:
        companions(root)
    says(error, str(root))


def test_links_within_the_checkpoint_are_its_own(tmp_path):
    root = directory(tmp_path / "base", {"vocab.txt": "a", "files/config.json": "{}"})
    (root / "config.json").symlink_to("files/config.json")
    assert companions(root).files == ("config.json", "files/config.json", "vocab.txt")


MAPPED = {"auto_map": {"AutoModel": "modeling_x.Model", "AutoTokenizer": ["tok.Slow", None]}}


def test_code_is_what_the_config_names(tmp_path):
    files = {
        "config.json": MAPPED,
        "modeling_x.py": "from .layers import L\nfrom . import one, two\nimport os\n",
        "layers.py": "from .modeling_x import Model\nimport .deep\n",
        "deep.py": "",
        "one.py": "",
        "tok.py": "",
        "usercustomize.py": "",
        "os.py": "",
    }
    found = companions(directory(tmp_path, files))
    assert found.files == ("config.json",)
    assert found.code == ("deep.py", "layers.py", "modeling_x.py", "one.py", "tok.py")
    assert found.others == ("os.py", "usercustomize.py")


@pytest.mark.parametrize(
    "named",
    ["../evil.X", "/etc/evil.X", "org/name--evil.X", "evil", "", 7, None, ["../evil.X"], {}, "..X"],
)
def test_code_elsewhere_is_not_named(tmp_path, named):
    root = directory(tmp_path / "base", {"config.json": {"auto_map": {"A": named}}, "x.py": ""})
    directory(tmp_path, {"evil.py": ""})
    assert companions(root).code == ()


def test_code_that_leads_elsewhere_is_refused(tmp_path):
    root = directory(tmp_path / "base", {"config.json": MAPPED})
    directory(tmp_path, {"evil.py": ""})
    (root / "modeling_x.py").symlink_to("../evil.py")
    with pytest.raises(CorruptCheckpointError) as error:
        companions(root)
    says(error, "modeling_x.py")
