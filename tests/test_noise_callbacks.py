"""Callbacks of Lightning and Hugging Face with the real libraries: training notices nothing."""

import copy
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from noise_cases import small_network
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from vivit_bench.errors import UsageError
from vivit_bench.noise import NoiseMonitor, measure
from vivit_bench.noise.watched import Outputs, Watch

_LIBRARIES = {"lightning": ("lightning",), "transformers": ("transformers", "accelerate")}


def library(name: str) -> Any:
    """The callback's class; the test is skipped where the library is missing."""
    for package in _LIBRARIES[name]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    return __import__(f"vivit_bench.noise.{name}", fromlist=["NoiseCallback"]).NoiseCallback


def watched_batch() -> tuple[Tensor, Tensor]:
    _, _, x, y = small_network()
    return x[:6], y[:6]


def lightning_module() -> Any:
    from lightning.pytorch import LightningModule

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.loss, *_ = small_network()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, _: int) -> Tensor:
            x, y = batch
            value: Tensor = self.loss(self.net(x), y)
            return value

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    return Module()


def lightning_trainer(folder: Path, devices: int = 1, **options: Any) -> Any:
    from lightning.pytorch import Trainer

    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", devices=devices, default_root_dir=folder, **quiet, **options)


def lightning_batches() -> Any:
    _, _, x, y = small_network()
    return DataLoader(TensorDataset(x[8:], y[8:]), 4, shuffle=True)


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_bit_by_bit_as_without(tmp_path: Path) -> None:
    callback = library("lightning")
    trained, seen = [], []
    for noise in (None, callback(watched_batch(), nn.CrossEntropyLoss(), [0, 3, 4], model="net")):
        module = lightning_module()
        torch.manual_seed(1)
        trainer = lightning_trainer(
            tmp_path,
            max_epochs=3,
            accumulate_grad_batches=2,  # 4 batches, 2 optimizer steps an epoch
            enable_checkpointing=False,
            callbacks=[] if noise is None else [noise],
        )
        trainer.fit(module, lightning_batches())
        assert trainer.global_step == 6
        trained.append((module.state_dict(), torch.get_rng_state()))
        seen.append(noise)
    assert list(trained[0][0]) == list(trained[1][0])
    for name, values in trained[0][0].items():
        assert torch.equal(values, trained[1][0][name]), name
    assert torch.equal(trained[0][1], trained[1][1])
    assert seen[1].table()["step"].unique().tolist() == [0, 3, 4]
    assert seen[1].summary()["step"].tolist() == [0, 3, 4]
    assert seen[1].monitor.steps == 6
    model, loss, *_ = small_network()
    at_start = measure(model, loss, *watched_batch())
    assert seen[1].measurements[0].directions.equals(at_start.directions)


@pytest.mark.filterwarnings("ignore")
def test_lightning_goes_on_counting_and_takes_the_module_itself(tmp_path: Path) -> None:
    callback = library("lightning")
    module = lightning_module()
    first = lightning_trainer(tmp_path, max_steps=3, enable_checkpointing=False)
    first.fit(module, lightning_batches())
    file = tmp_path / "three.ckpt"
    first.save_checkpoint(file)
    noise = callback(watched_batch(), nn.CrossEntropyLoss(), [1, 3, 5])
    options = {"enable_checkpointing": False, "callbacks": [noise]}
    goes_on = lightning_trainer(tmp_path, max_steps=6, **options)
    goes_on.fit(lightning_module(), lightning_batches(), ckpt_path=file, weights_only=False)
    assert noise.summary()["step"].tolist() == [3, 5]
    module.eval()
    at_three = NoiseMonitor(module, nn.CrossEntropyLoss(), *watched_batch()).table()
    table = noise.table()
    assert table[table["step"] == 3]["eigenvalue"].tolist() == at_three["eigenvalue"].tolist()


@pytest.mark.filterwarnings("ignore")
def test_lightning_goes_on_in_another_module(tmp_path: Path) -> None:
    noise = library("lightning")(watched_batch(), nn.CrossEntropyLoss(), [1, 2, 4], model="net")
    options = {"enable_checkpointing": False, "callbacks": [noise]}
    first = lightning_trainer(tmp_path, max_steps=2, **options)
    first.fit(lightning_module(), lightning_batches())
    file = tmp_path / "two.ckpt"
    first.save_checkpoint(file)
    module = lightning_module()
    goes_on = lightning_trainer(tmp_path, max_steps=4, **options)
    goes_on.fit(module, lightning_batches(), ckpt_path=file, weights_only=False)
    assert list(noise.measurements) == [1, 2, 4]
    at_end = measure(module.net, nn.CrossEntropyLoss(), *watched_batch())
    assert noise.measurements[4].directions.equals(at_end.directions)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("nett", "'nett' of Module is a NoneType, not a torch.nn.Module; its modules: net, loss"),
        (lambda module: module.training, "is a bool"),
    ],
)
def test_lightning_names_what_is_no_model(tmp_path: Path, model: Any, says: str) -> None:
    noise = library("lightning")(watched_batch(), nn.CrossEntropyLoss(), model=model)
    trainer = lightning_trainer(
        tmp_path, max_steps=1, enable_checkpointing=False, callbacks=[noise]
    )
    with pytest.raises(UsageError, match=says):
        trainer.fit(lightning_module(), lightning_batches())


def bert(labels: int = 3) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=20,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=12,
            max_position_embeddings=16,
            num_labels=labels,
        )
    )


def sentences(count: int) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(count)
    return [
        {
            "input_ids": torch.randint(20, (5,), generator=draw),
            "attention_mask": torch.tensor([1, 1, 1, 1, number % 2]),
            "labels": torch.tensor(number % 3),
        }
        for number in range(count)
    ]


def collated(count: int) -> dict[str, Tensor]:
    rows = sentences(count)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def train_bert(folder: Path, noise: Any, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    model = bert()
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=0.01,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **options,
    )
    callbacks = [] if noise is None else [noise]
    trainer = Trainer(model, arguments, train_dataset=sentences(24), callbacks=callbacks)
    trainer.train()
    assert trainer.state.global_step == 6
    return model


def resumed_bert(folder: Path, noise: Any) -> Any:
    """Three steps, and from their checkpoint three more in a model that is made anew."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        num_train_epochs=1,
        save_strategy="epoch",
        learning_rate=0.01,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        model_init=lambda: bert(), args=arguments, train_dataset=sentences(24), callbacks=[noise]
    )
    trainer.train()
    arguments.num_train_epochs = 2
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6
    return trainer.model


@pytest.mark.filterwarnings("ignore")
def test_transformers_goes_on_in_a_model_that_is_made_anew(tmp_path: Path) -> None:
    noise = library("transformers")(collated(7), nn.CrossEntropyLoss(), [0, 3, 6])
    trained = resumed_bert(tmp_path, noise)
    assert list(noise.measurements) == [0, 3, 6]
    batch = collated(7)
    at_end = measure(Outputs(trained), nn.CrossEntropyLoss(), batch, batch.pop("labels"))
    assert noise.measurements[6].directions.equals(at_end.directions)


@pytest.mark.one_in(2)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", [{}, {"bf16": True}], ids=["float32", "bf16"])
def test_transformers_trains_bit_by_bit_as_without(
    tmp_path: Path, precision: dict[str, Any]
) -> None:
    callback = library("transformers")
    noise = callback(collated(7), nn.CrossEntropyLoss(), [0, 2, 6])
    models, states = [], []
    for watcher in (None, noise):
        models.append(train_bert(tmp_path, watcher, num_train_epochs=2, **precision))
        states.append(torch.get_rng_state())
    expected, found = (model.state_dict() for model in models)
    assert list(expected) == list(found)
    for name, values in expected.items():
        assert torch.equal(values, found[name]), name
    assert torch.equal(*states)
    assert noise.summary()["step"].tolist() == [0, 2, 6]
    assert noise.monitor.steps == 6
    batch = collated(7)
    labels = batch.pop("labels")
    at_start = measure(Outputs(bert()), nn.CrossEntropyLoss(), batch, labels)
    assert noise.measurements[0].directions.equals(at_start.directions)
    assert noise.measurements[0].summary()["certified_samples"] == 2


@pytest.mark.filterwarnings("ignore")
def test_a_language_model_through_a_function_of_its_outputs(tmp_path: Path) -> None:
    library("transformers")
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=6, n_embd=8, n_layer=1, n_head=2))
    names = list(model.state_dict())
    tokens = torch.randint(9, (3, 5))
    watch = Watch(
        ({"input_ids": tokens}, tokens[:, 1:]),
        nn.CrossEntropyLoss(),
        output=lambda found: found.logits[:, :-1].transpose(1, 2),
    )
    watch._begin(model, 0)
    loss = watch.summary()["loss"].item()
    assert loss == pytest.approx(model.eval()(tokens, labels=tokens).loss.item(), rel=1e-5)
    assert list(model.state_dict()) == names


class Named:
    def __init__(self, values: Tensor) -> None:
        self.scores = values


class Names(nn.Module):
    """A model that returns an object, as Hugging Face's do, without logits."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Any:
        return Named(self.fc(x))


def test_outputs_that_are_no_tensor_are_named_or_chosen() -> None:
    batch = torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
    with pytest.raises(UsageError, match="returns a Named without logits; give output="):
        Watch(batch, nn.CrossEntropyLoss())._begin(Names(), 0)
    watch = Watch(batch, nn.CrossEntropyLoss(), output=lambda found: found.scores)
    assert watch.table().empty
    assert watch.summary().empty
    assert watch.measurements == {}
    watch._begin(Names(), 0)
    assert list(watch.measurements) == [0]


def test_parts_of_a_model_are_refused_and_later_processes_look_at_nothing() -> None:
    model, loss, *_ = small_network()
    watch = Watch(watched_batch(), loss)
    with pytest.raises(UsageError, match="with fsdp each process has a part of the model"):
        watch._begin(model, 0, 0, "fsdp")
    watch._begin(model, 0, 1)
    watch._count(3)
    assert watch.monitor is None
    next(model.parameters()).device_mesh = None  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="with a device mesh each process has a part"):
        watch._begin(model, 0, 1)


_TWO_PROCESSES = {
    "lightning": """
        module = lightning_module()
        options = {"strategy": "ddp", "devices": 2, "max_epochs": 2, "enable_checkpointing": False}
        lightning_trainer(FOLDER, callbacks=noise, **options).fit(module, lightning_batches())
        model = module.net
    """,
    "transformers": """
        model = train_bert(FOLDER, *(noise or [None]), num_train_epochs=3)
    """,
}


@pytest.mark.parametrize("name", list(_TWO_PROCESSES))
def test_of_two_processes_the_first_looks(name: str, tmp_path: Path) -> None:
    library(name)
    batch = "collated(7)" if name == "transformers" else "watched_batch()"
    before = f"""
        import os, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_noise_callbacks import *
        FOLDER, watched = Path({str(tmp_path)!r}), sys.argv[1]
        make, batch = library({name!r}), {batch}
        noise = [make(batch, nn.CrossEntropyLoss(), [0, 2])] if watched == "True" else []
        torch.manual_seed(1)
    """
    after = """
        steps = [list(one.measurements) for one in noise]
        file = FOLDER / f"{watched}{os.environ.get('LOCAL_RANK', 0)}.pt"
        torch.save((steps, model.state_dict()), file)
    """
    script = tmp_path / "train.py"
    script.write_text("\n".join(map(textwrap.dedent, (before, _TWO_PROCESSES[name], after))))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for watched in ("False", "True"):
        command = [*(launch if name == "transformers" else []), str(script), watched]
        command = [sys.executable, *command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    files = [tmp_path / f"{watched}{rank}.pt" for watched in (False, True) for rank in (0, 1)]
    plain, _, first, second = (torch.load(file) for file in files)
    assert (first[0], second[0]) == ([[0, 2]], [[]])
    for parameter, values in plain[1].items():
        assert torch.equal(values, first[1][parameter]), parameter


def test_steps_that_cannot_be_seen_are_refused() -> None:
    model, loss, *_ = small_network()
    watch = Watch(watched_batch(), loss, at=[2])
    watch._count(3)  # nothing is watched yet
    watch._begin(model, 0)
    watch._count(0)
    watch._count(1)
    with pytest.raises(UsageError, match="from optimizer step 1 to 3"):
        watch._count(3)
    watch._count(2)
    assert list(watch.measurements) == [2]
    going_on = watch.monitor
    watch._begin(model, 2)
    assert watch.monitor is going_on
    watch._begin(model, 0)
    assert watch.monitor is not going_on


def test_a_training_that_goes_on_in_another_model_is_looked_at_there() -> None:
    first, loss, *_ = small_network()
    watch = Watch(watched_batch(), loss)
    watch._begin(first, 0)
    watch._count(1)
    before = dict(watch.measurements)
    restored = copy.deepcopy(first)
    watch._begin(restored, 1)
    with torch.no_grad():
        for parameter in restored.parameters():
            parameter.mul_(1.5)
    watch._count(2)
    assert list(watch.measurements) == [0, 1, 2]
    for step, seen in before.items():
        assert watch.measurements[step].directions.equals(seen.directions)
    expected = measure(restored, loss, *watched_batch())
    assert watch.measurements[2].directions.equals(expected.directions)
    other = copy.deepcopy(first)
    watch._begin(other, 0)  # another training
    assert list(watch.measurements) == [0]


@pytest.mark.parametrize(
    ("batch", "at", "says"),
    [
        ((torch.ones(2, 2),), None, "monitor_batch is a tuple of 1; give"),
        (torch.ones(2, 2), None, "monitor_batch is a Tensor; give"),
        ({"input_ids": torch.ones(2)}, None, "monitor_batch has input_ids and no labels"),
        ((torch.ones(2, 2), [1, 2]), None, "targets of type list"),
        (({"text": "a"}, torch.ones(2)), None, "inputs hold a str"),
        ((torch.ones(2, 2), torch.ones(2)), [1, -2], "step -2"),
    ],
)
def test_what_is_no_batch_is_refused_before_the_training(batch: Any, at: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Watch(batch, nn.CrossEntropyLoss(), at)


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_a_missing_library_is_one_line_and_noise_needs_none(name: str) -> None:
    code = f"""
import sys
sys.modules.update(lightning=None, transformers=None)
import vivit_bench.noise as noise
noise.NoiseMonitor
try:
    import vivit_bench.noise.{name}
except noise.monitor.UsageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert f"pip install 'vivit-bench[{name}]'" in line
    assert repr(name) in line
