"""What a policy's files may ask for: nothing of them is run, and nothing senseless is measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_vla
import torch
from safetensors.torch import load_file, save_file
from toy_policy import NEW, save_tiny_policy

from robo_razor.cli import commands as cli
from robo_razor.core.errors import CheckpointError, PolicyError, RoboRazorError, UnknownNameError
from robo_razor.policies.load import load_policy

STATE = "observation.state"
STATISTICS = "policy_preprocessor_step_4_normalizer_processor.safetensors"
WEIGHTS = "model.safetensors"
MARKS: list[str] = []


def leave_mark(*_: object, **__: object) -> None:
    """Stand for a stranger's code."""
    MARKS.append("ran")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return Path(save_tiny_policy(tmp_path_factory.mktemp("saved") / "policy"))


@pytest.fixture
def policy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "policy"))


def edit(file: Path, change) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def add_step(folder: Path, step, file: str = "policy_preprocessor.json") -> None:
    edit(folder / file, lambda data: data["steps"].insert(0, step))


def edit_tensors(file: Path, change) -> None:
    tensors = load_file(file)
    save_file(change(tensors) or tensors, file)


def refusal(folder) -> str:
    """Return the one paragraph with which a policy is refused."""
    with pytest.raises(RoboRazorError) as error:
        load_policy(folder)
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 2000
    return text


# Code --------------------------------------------------------------------------------------------


def foreign_steps(mark: Path) -> dict[str, dict]:
    touch = ["touch", str(mark)]
    return {
        "a process": {"class": "subprocess.Popen", "config": {"args": touch}},
        "a shell": {"class": "os.system", "config": {"command": " ".join(touch)}},
        "a built-in": {"class": "builtins.exec", "config": {"source": f"open({str(mark)!r}, 'w')"}},
        "a function of ours": {
            "class": "robo_razor.core.files.write_text",
            "config": {"path": str(mark), "text": "x"},
        },
        "a function here": {"class": f"{__name__}.leave_mark", "config": {}},
        "LeRobot's, but no step": {
            "class": "lerobot.policies.factory.get_policy_class",
            "config": {"name": "act"},
        },
        "a module beside": {"class": "mark.Step", "config": {}},
        "a registered name": {"registry_name": "subprocess.Popen", "config": {"args": touch}},
        "a name that is no text": {"registry_name": ["subprocess.Popen"], "config": {}},
        "no name": {"config": {}},
        "a model from anywhere": {
            "registry_name": "reward_classifier_processor",
            "config": {"pretrained_path": str(mark.parent)},
        },
        "code of the hub": {
            "registry_name": "action_tokenizer_processor",
            "config": {"action_tokenizer_name": "someone/code"},
        },
        "a step of another policy": {
            "registry_name": "groot_n1_7_vlm_encode_v1",
            "config": {"model_name": "someone/code"},
        },
    }


KINDS = list(foreign_steps(Path("mark")))


@pytest.mark.parametrize("file", ["policy_preprocessor.json", "policy_postprocessor.json"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_nobody_registered_is_refused_and_nothing_runs(
    policy, tmp_path, monkeypatch, kind, file
):
    mark = tmp_path / "mark"
    (policy / "mark.py").write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.chdir(policy)
    monkeypatch.syspath_prepend(str(policy))
    add_step(policy, foreign_steps(mark)[kind], file)
    text = refusal(policy)
    assert f"step 0 of {policy / file} names the" in text
    assert "None of its code was run" in text
    assert not mark.exists()
    assert MARKS == []


def test_what_comes_from_the_hub_goes_through_the_same_door(policy, tmp_path, monkeypatch):
    import huggingface_hub

    mark = tmp_path / "mark"
    add_step(policy, foreign_steps(mark)["a process"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(policy))
    assert "names the class 'subprocess.Popen'" in refusal("someone/policy")
    assert not mark.exists()


COMMANDS = {
    "evaluate": ["--skills", NEW, "--episodes", "1"],
    "rollout": ["--task", NEW, "--episodes", "1"],
    "collect": ["--task", NEW, "--episodes", "1", "--out", "OUT"],
    "finetune": ["--task", NEW, "--prior-tasks", "none", "--out", "OUT"],
    "finetune a run's": ["--task", NEW, "--prior-tasks", "none", "--out", "OUT"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_loads_a_policy_refuses_it(policy, tmp_path, capsys, command):
    mark = tmp_path / "mark"
    run = tmp_path / "run" / "checkpoints" / "000001" / "pretrained_model"
    add_step(policy, foreign_steps(mark)["a process"])
    shutil.copytree(policy, run)
    chosen = run.parents[2] if command.endswith("a run's") else policy
    arguments = [str(tmp_path / "out") if word == "OUT" else word for word in COMMANDS[command]]
    arguments += ["--env.num-workers", "1", "--env.num-envs", "1", "--env.env-packages", "toy_env"]
    status = cli.main([command.split()[0], "--policy", str(chosen), *arguments])
    error = capsys.readouterr().err
    assert "names the class 'subprocess.Popen'" in error
    assert status == 2
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_steps_are_known_by_registered_name_or_by_the_name_of_a_registered_class(policy):
    add_step(policy, {"class": "lerobot.processor.DeviceProcessorStep", "config": {}})
    add_step(policy, {"registry_name": "to_batch_processor", "config": {}})
    assert len(load_policy(policy).preprocessor.steps) == 7


@pytest.mark.parametrize(
    "name",
    [
        *("../other.safetensors", "/etc/passwd", "~/x.safetensors", "a/b.safetensors", "..", ""),
        *("a\0.safetensors", "x" * 300 + ".safetensors", "C:\\x.safetensors", "x.bin"),
        *(["a"], 5, None),
    ],
)
def test_a_state_file_is_a_plain_name_in_the_policys_own_folder(policy, name):
    shutil.copy(policy / STATISTICS, policy.parent / "other.safetensors")
    file = policy / "policy_preprocessor.json"
    edit(file, lambda data: data["steps"][4].update(state_file=name))
    assert f"step 4 of {file} reads the state file" in refusal(policy)


def test_a_state_file_that_is_missing_or_damaged_is_named(policy):
    file = policy / STATISTICS
    file.write_bytes(file.read_bytes()[:40])
    assert f"{file} (40 bytes) is truncated or damaged" in refusal(policy)
    file.unlink()
    assert f"reads the state file {STATISTICS!r}, which" in refusal(policy)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc", "~/x", "file:///etc", "..\\x"])
def test_a_tokenizer_is_of_the_hub_or_a_folder_of_settings(policy, name):
    add_step(policy, {"registry_name": "tokenizer_processor", "config": {"tokenizer_name": name}})
    assert "outside of the policy's folder" in refusal(policy)


def test_a_policy_of_the_hub_names_no_folder_of_this_machine(tmp_path, monkeypatch):
    import huggingface_hub

    folder = tiny_vla.save_tiny_smolvla(tmp_path / "policy")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: folder)
    assert "`vlm_model_name` in" in (text := refusal("someone/policy"))
    assert "Allowed: a repository of the hub (owner/name)." in text
    shutil.copytree(tmp_path / "policy-vlm", Path(folder) / "vlm")
    load_policy("someone/policy")


def test_code_of_a_repository_is_never_asked_for_nor_run(tmp_path, monkeypatch):
    """Neither by the key that transformers reads, nor by a policy that allows it by itself."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    folder = Path(tiny_vla.save_tiny_smolvla(tmp_path / "policy"))
    backbone = tmp_path / "policy-vlm"
    mark = tmp_path / "mark"
    (backbone / "code.py").write_text(f"open({str(mark)!r}, 'w')\nclass Words: pass\n")
    asks = {"auto_map": {"AutoConfig": "code.Words", "AutoProcessor": "code.Words"}}
    asks |= {"tokenizer_class": "Words", "model_type": "unheard", "processor_class": "Words"}
    for name in ("config.json", "processor_config.json"):
        edit(backbone / name, lambda data: data.update(asks))
    assert "needs code that is not installed" in refusal(folder)
    shutil.copytree(backbone, folder / "vlm")
    assert "`auto_map`" in refusal(folder)
    from transformers import AutoConfig

    from robo_razor.policies.files import without_remote_code

    with without_remote_code(), pytest.raises(PolicyError, match="needs code that is not"):
        AutoConfig.from_pretrained(backbone, trust_remote_code=True)
    assert not mark.exists()


def test_a_checkpoint_takes_no_files_of_a_named_folder_but_settings_and_tokenizer(tmp_path):
    folder = tiny_vla.save_tiny_smolvla(tmp_path / "policy")
    (tmp_path / "policy-vlm" / "passwords.txt").write_text("secret")
    (tmp_path / "policy-vlm" / "credentials.json").write_text("{}")
    load_policy(folder).save(tmp_path / "saved")
    names = {file.name for file in (tmp_path / "saved" / "vlm").iterdir()}
    assert {"config.json", "tokenizer.json"} <= names
    assert not names & {"passwords.txt", "credentials.json"}


@pytest.mark.parametrize("name", ["config", "policy_postprocessor", "x" * 5000, "../../x"])
def test_a_pipelines_name_decides_no_file_of_later_checkpoints(policy, tmp_path, name):
    edit(policy / "policy_preprocessor.json", lambda data: data.update(name=name))
    load_policy(policy).save(tmp_path / "saved")
    assert {f.name for f in (tmp_path / "saved").iterdir()} == {f.name for f in policy.iterdir()}
    load_policy(tmp_path / "saved")


def test_a_link_out_of_the_policys_folder_is_not_copied_into_checkpoints(tmp_path):
    folder = Path(tiny_vla.save_tiny_smolvla(tmp_path / "policy"))
    shutil.copytree(tmp_path / "policy-vlm", folder / "vlm")
    (tmp_path / "secret").write_text("secret")
    template = folder / "vlm" / "chat_template.jinja"
    template.unlink(missing_ok=True)
    template.symlink_to(tmp_path / "secret")
    assert "is a link that leads out of the policy's folder" in refusal(folder)


# Text --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "policy_preprocessor.json"])
@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"5", b"null", b"\xff\xfe{\0}\0", b"[" * 100_000, b'{"steps": NaN}', b'{"a": {}}'],
)
def test_broken_text_is_one_paragraph(policy, file, text):
    (policy / file).write_bytes(text)
    assert file in refusal(policy)


@pytest.mark.parametrize("given", [["razor"], {}, 5, None, True, ""])
def test_the_type_of_a_policy_is_text(policy, given):
    edit(policy / "config.json", lambda data: data.update(type=given))
    refusal(policy)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("n_layers", 100_000, "far more parameters than the"),
        ("vocab_size", 10**9, "far more parameters than the"),
        ("dim_model", 10**6, "far more parameters than the"),
        ("num_bins", 10**9 + 1, "far more parameters than the"),
        ("stem_channels", [10**9] * 3, "far more parameters than the"),
        ("chunk_size", 10**9, "Allowed: whole numbers from 1 to 10000"),
        ("chunk_size", -1, "Allowed: whole numbers from 1 to 10000"),
        ("n_action_steps", 5, "it is 5, but a chunk has 4 actions"),
        ("image_size", 10**6, "Allowed: whole numbers from 1 to 16384"),
        ("max_instruction_tokens", 1.5, "Allowed: whole numbers from 1 to"),
        ("n_layers", -1, r"the file has 'blocks.0.*' and \d+ more, which the policy does not"),
        ("dim_head", "many", "Couldn't parse 'many'"),
        ("device", "toaster", "Unknown device toaster"),
        ("bin_mu", 0, "do not stand for ascending actions"),
        ("input_features", [], "razor needs"),
        ("input_features", {"observation.state": {"type": "STATE", "shape": [10**9]}}, "shape"),
        ("auto_map", {"AutoConfig": "code.Words"}, "needs code"),
    ],
)
def test_senseless_settings_are_refused_before_they_fill_the_memory(
    policy, setting, value, message
):
    edit(policy / "config.json", lambda data: data.update({setting: value}))
    with pytest.raises(RoboRazorError, match=message):
        load_policy(policy)


def test_a_tokenizer_of_another_policy_is_refused(policy):
    file = policy / "policy_preprocessor.json"

    def more_words(data):
        data["steps"][2]["config"]["vocabulary"] += [f"word{i}" for i in range(99)]

    edit(file, more_words)
    assert "`vocab_size`" in refusal(policy)


def test_processors_that_do_not_fit_are_told_before_anything_is_measured(policy):
    file = policy / "policy_preprocessor.json"
    edit(file, lambda data: data["steps"].pop(2))
    assert "fails on an observation: KeyError" in refusal(policy)
    edit(file, lambda data: data["steps"].pop(3))
    assert "normalises 'observation.state' by MEAN_STD, as its config.json says" in refusal(policy)


def test_whole_weights_are_no_adapter_whatever_the_settings_say(policy):
    edit(policy / "config.json", lambda data: data.update(use_peft=True))
    assert load_policy(policy).config.use_peft is False
    (policy / "adapter_config.json").write_text("{}")
    assert "is a PEFT adapter" in refusal(policy)
    (policy / WEIGHTS).unlink()
    edit(policy / "config.json", lambda data: data.update(use_peft=False))
    assert "it is a PEFT adapter" in refusal(policy)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "x" * 5000, "a\0b", "owner/na me"])
def test_a_name_that_no_file_could_have_is_an_unknown_policy(name):
    with pytest.raises(UnknownNameError, match="not a directory either") as error:
        load_policy(name)
    assert len(str(error.value)) < 1000


def test_a_run_is_its_newest_checkpoint_with_or_without_links(policy, tmp_path):
    run = tmp_path / "run"
    for step in (1, 2, 10):
        shutil.copytree(policy, run / "checkpoints" / f"{step:06d}" / "pretrained_model")
    (run / "checkpoints" / "last").symlink_to("000002")
    newest = run / "checkpoints" / "000010" / "pretrained_model"
    from robo_razor.policies.load import locate_policy

    assert locate_policy(run) == locate_policy(run / "checkpoints") == newest
    (run / "checkpoints" / "last").unlink()
    assert locate_policy(run) == newest


# Weights -----------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_refused(policy):
    def break_one(tensors):
        tensors["norm.weight"][3] = float("nan")

    edit_tensors(policy / WEIGHTS, break_one)
    assert "1 of the 32 numbers of 'norm.weight' are NaN or infinite" in refusal(policy)
    edit_tensors(
        policy / WEIGHTS, lambda t: {k: torch.full_like(v, float("inf")) for k, v in t.items()}
    )
    assert "and so are" in refusal(policy)


def test_weights_that_overflow_are_refused_before_any_episode(policy):
    edit_tensors(policy / WEIGHTS, lambda t: {k: torch.full_like(v, 1e38) for k, v in t.items()})
    assert "logits of actions and values of which" in refusal(policy)


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("kind", [torch.int32, torch.bool, torch.complex64, torch.int8])
def test_weights_of_another_kind_of_number_are_refused(policy, kind):
    edit_tensors(policy / WEIGHTS, lambda t: {k: v.to(kind) for k, v in t.items()})
    assert "but the policy computes with float32" in refusal(policy)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_another_precision_are_read(policy, kind):
    edit_tensors(policy / WEIGHTS, lambda t: {k: v.to(kind) for k, v in t.items()})
    assert {p.dtype for p in load_policy(policy).module.parameters()} == {torch.float32}


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_read_over(policy, saved, prefix):
    edit_tensors(policy / WEIGHTS, lambda t: {prefix + k: v for k, v in t.items()})
    expected = load_policy(saved).module.state_dict()
    weights = load_policy(policy).module.state_dict()
    assert all(torch.equal(expected[key], weights[key]) for key in expected)


def test_the_first_keys_that_do_not_fit_are_named(policy):
    edit_tensors(
        policy / WEIGHTS,
        lambda t: {("module." if i % 2 else "") + k: v for i, (k, v) in enumerate(t.items())},
    )
    text = refusal(policy)
    assert "the file lacks 'action_head.0.weight' and 24 more" in text
    assert "the file has 'module.action_head.0.weight' and 24 more" in text


def test_weights_in_several_files_are_named(policy):
    (policy / WEIGHTS).unlink()
    (policy / "model.safetensors.index.json").write_text("{}")
    assert "weights in several files" in refusal(policy)


def test_weights_of_the_critic_are_checked_as_well(tmp_path):
    folder = tmp_path / "saved"
    load_policy(tiny_vla.save_tiny_smolvla(tmp_path / "policy")).save(folder)
    file = folder / "value_head.safetensors"
    tensors = load_file(file)
    save_file({key: torch.full_like(value, float("nan")) for key, value in tensors.items()}, file)
    assert "of 'value_head." in refusal(folder)
    save_file({key: value.int() for key, value in tensors.items()}, file)
    assert "as torch.int32, but weights are floating-point" in refusal(folder)


# Statistics --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mean", float("nan"), "mean of 'observation.state' in .* is nan in dimension 3"),
        ("mean", float("-inf"), "is -inf in dimension 3"),
        ("std", float("nan"), "std of 'observation.state' in .* is nan in dimension 3"),
        ("std", -0.1, "is -0.1 in dimension 3"),
        ("std", 0.0, "is 0 in dimension 3: .* divided by 1e-08"),
        ("std", 1e-9, "is 1e-09 in dimension 3: .* divided by 1e-08"),
    ],
)
def test_statistics_that_are_no_width_are_refused_with_file_and_dimension(
    policy, name, value, message
):
    def change(tensors):
        tensors[f"{STATE}.{name}"][3] = value

    edit_tensors(policy / STATISTICS, change)
    with pytest.raises(CheckpointError, match=message) as error:
        load_policy(policy)
    assert str(policy / STATISTICS) in str(error.value)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(1), r"has the shape \[1\], but the value has \[7\]"),
        (torch.tensor(1.0), r"has the shape \[\], but the value has \[7\]"),
        (torch.ones(7, dtype=torch.int32), "as I32"),
        (torch.ones(7, dtype=torch.complex64), "as C64"),
        (None, "hold no std of it"),
    ],
)
def test_statistics_of_another_shape_or_kind_are_refused(policy, tensor, message):
    def change(tensors):
        del tensors[f"{STATE}.std"]
        if tensor is not None:
            tensors[f"{STATE}.std"] = tensor

    edit_tensors(policy / STATISTICS, change)
    with pytest.raises(RoboRazorError, match=message):
        load_policy(policy)


def test_an_action_without_width_is_a_constant_as_in_lerobot_but_is_not_cloned(tmp_path):
    from robo_razor.core.settings.config import FinetuneConfig
    from robo_razor.policies.normalisation import check_statistics

    folder = Path(tiny_vla.save_tiny_other(tmp_path / "policy", "act"))

    def change(tensors):
        tensors["action.std"][4] = 0.0

    for file in folder.glob("*normalizer_processor.safetensors"):
        edit_tensors(file, change)
    handle = load_policy(folder)
    assert torch.equal(handle.postprocessor(torch.ones(1, 5))[0, 4], torch.tensor(0.1))
    with pytest.raises(PolicyError, match=r"never change in dimension 4 \(std is 0"):
        check_statistics(handle, FinetuneConfig(method="bc"))


# While it acts -----------------------------------------------------------------------------------


def test_nan_is_never_the_likeliest_action(saved):
    handle = load_policy(saved)
    batch = handle.prepare(observed(), ["lift it"] * 2)
    with torch.no_grad():
        handle.module.action_head[-1].bias[0] = float("nan")
        for look in (handle.distribution, handle.distribution_and_value):
            with pytest.raises(PolicyError, match="its weights or its statistics"):
                look(batch)
        handle.module.action_head[-1].bias[0] = 0.0
        batch[STATE][0, 0] = float("nan")
        with pytest.raises(PolicyError, match="was given NaN or infinity as 'observation.state'"):
            handle.distribution(batch)


def test_a_policy_without_a_density_and_a_flow_policy_look_at_their_actions_too(tmp_path):
    act = load_policy(tiny_vla.save_tiny_other(tmp_path / "act", "act", image_size=16))
    flow = load_policy(tiny_vla.save_tiny_smolvla(tmp_path / "flow"))
    with torch.no_grad():
        act.module.model.action_head.bias[0] = float("inf")
        base = flow.frozen_copy()
        flow.module.model.action_out_proj.bias[0] = float("nan")
        for handle in (act, flow):
            with pytest.raises(PolicyError, match="computed actions of which"):
                handle.act(observed(), ["lift it"] * 2)
        batch = flow.prepare(observed(), ["lift it"] * 2)
        with pytest.raises(PolicyError, match="KL divergence of two flow policies is NaN"):
            base.distribution(batch).kl(flow.distribution(batch))


def observed():
    import numpy as np

    pixels = {name: np.zeros((2, 16, 16, 3), np.uint8) for name in ("front", "wrist")}
    return {"pixels": pixels, "agent_pos": np.zeros((2, 7), np.float32)}


# Words -------------------------------------------------------------------------------------------


def unread(caplog):
    """Return the warnings of words; other tests may let more be told, and by others."""
    return [record for record in caplog.records if "instruction '" in record.message]


def test_words_that_a_policy_does_not_read_are_named_once(tmp_path, saved, caplog):
    long = "move to the left of the bin and then to the can and lift it"
    handle = load_policy(saved)
    for _ in range(3):
        handle.prepare(observed(), [long] * 2)
    assert len(unread(caplog)) == 1
    assert "It does not read the rest: and lift it." in caplog.text
    caplog.clear()
    with pytest.raises(PolicyError, match="knows no word"):
        handle.check_instruction("foo " * 12 + "lift")
    flow = load_policy(tiny_vla.save_tiny_smolvla(tmp_path / "flow"))
    caplog.clear()
    for _ in range(3):
        flow.prepare(observed(), ["lift the red block", "lift the extraordinarily purple gizmo"])
    assert len(unread(caplog)) == 1
    assert "Words that it cuts off, as they are too many: " in caplog.text
    assert caplog.text.rstrip().endswith("gizmo.")
