"""A Trainer that writes a trace of every step and checkpoints, and resumes from them to the same bits."""

import time
import weakref
from collections.abc import Callable
from typing import Any

from bitsandbytes.functional import GlobalPageManager
from bitsandbytes.optim import GlobalOptimManager
from transformers import Trainer, TrainerCallback

from qlora_repeat.records.trace import Step, trace_line
from qlora_repeat.stages.checkpoint import Checkpoint, Unfinished, save_checkpoint
from qlora_repeat.stages.legacy_qmap import set_legacy_qmap
from qlora_repeat.stages.padding import predicts, targets
from qlora_repeat.study.randomness import stream_seed, torch_stream
from qlora_repeat.study.trial import Progress
from qlora_repeat.system.files import append_to, write_whole
from qlora_repeat.system.hashing import tensors_digest
from qlora_repeat.system.memory import gpu_memory, peak_memory, reset_peak_memory
from qlora_repeat.system.signals import stop_if_requested, stop_requested


class TracingTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer with given batches, from a checkpoint to step `end`.

    It does not use the logs and checkpoints of Trainer: the logs round losses to four digits and hide NaN and
    infinity; the checkpoints are pickled, and resuming from them does not give the same bits.
    """

    def __init__(
        self,
        *args: Any,
        order: list[list[int]],
        end: int,
        legacy_qmap: str | None,
        steps_per_epoch: int,
        unfinished: Unfinished,
        checkpoint: Checkpoint | None,
        checkpoint_every: int,
        last_steps: int,
        progress: Progress,
        **kwargs: Any,
    ) -> None:
        self.order, self.steps_per_epoch, self.progress = order, steps_per_epoch, progress
        self.watch: Callable[[Step], None] | None = None
        """Called after each step."""
        self.end, self.legacy_qmap = end, legacy_qmap
        self.unfinished, self.checkpoint, self.checkpoint_every = unfinished, checkpoint, checkpoint_every
        self.done = checkpoint.step if checkpoint else 0
        self.spent = {"train_seconds": 0.0, "checkpoint_seconds": 0.0, "digest_seconds": 0.0}
        self.sums: dict[str, Any] = {}
        """The sums of the trained parameters over the last steps so far, by name, on the CPU."""
        if checkpoint:
            self.spent |= checkpoint.spent
            kept = checkpoint.optimizer.items()
            self.sums = {name.removesuffix(_SUM): value for name, value in kept if name.endswith(_SUM)}
        self.began: float | None = None
        """The clock when training started or `spent_so_far` was last called."""
        self.last_steps = min(last_steps, len(order))
        """The number of steps whose adapters are averaged; 0 for none."""
        self.share = 1.0
        """The share of a batch in the tokens that its step predicts."""
        super().__init__(*args, **kwargs)
        # A reference would keep the model after training.
        self.add_callback(_Steps(weakref.proxy(self)))  # type: ignore[arg-type]

    @property
    def step(self) -> int:
        """The number of completed optimizer steps, including those before the checkpoint."""
        return self.done + int(self.state.global_step)

    def get_train_dataloader(self) -> Any:
        from torch.utils.data import DataLoader

        return DataLoader(
            self.train_dataset,
            batch_sampler=self.order[self.done :],
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)
        set_legacy_qmap(_unwrapped(optimizer), self.legacy_qmap)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        return super().create_scheduler(len(self.order), optimizer)  # not only the remaining steps

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Add up loss and gradients of a step's batches; each has its part of the mean over all tokens."""
        batches = [each for each in inputs["batches"] if predicts(each["labels"])]
        tokens = sum(targets(each["labels"]) for each in batches)
        loss: Any = 0.0
        with torch_stream(stream_seed(self.unfinished.seeds["dropout"], "dropout", self.step + 1)):
            for each in batches or inputs["batches"][:1]:
                self.share = targets(each["labels"]) / tokens if len(batches) > 1 else 1.0
                loss = super().training_step(model, each, *args, **kwargs) + loss
        # Without a token to predict, the loss is 0 / 0, and all gradients are zero.
        self.loss = loss.item() if batches else None
        return loss

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        # Some models ignore the number of tokens in the step, and return the mean of the batch.
        return loss if self.model_accepts_loss_kwargs or self.share == 1 else loss * self.share

    def _get_num_items_in_batch(self, batch_samples: Any, *args: Any, **kwargs: Any) -> Any:
        batches = [each for step in batch_samples for each in step["batches"]]
        return super()._get_num_items_in_batch(batches, *args, **kwargs)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # not used, and transformers expects a batch

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        self.gradient_norm = float(norm)
        return norm

    def adapter_digest(self) -> str:
        """Return the digest of the adapter, equal to the digest of its saved files."""
        # PEFT's state dictionary visits the whole quantized model, which takes far longer.
        saved = {saved_name(name): value for value, name in _names(self.model).items()}
        return tensors_digest(saved)

    def add_to_sums(self) -> None:
        """Add the adapter after a step to the sums, if it is one of the last steps."""
        if self.step > len(self.order) - self.last_steps:
            for parameter, name in _names(self.model).items():
                value = _on_cpu(parameter)
                self.sums[name] = self.sums[name] + value if name in self.sums else value

    def mean_of_last_steps(self) -> dict[str, Any]:
        """Return the mean of the adapters after the last steps, by the names of its file."""
        return {saved_name(name): value / self.last_steps for name, value in self.sums.items()}

    def make_checkpoint(self) -> Checkpoint:
        """Return the state after the last step."""
        optimizer, names = _unwrapped(self.optimizer), _names(self.model)
        states = [(names[parameter], state) for parameter, state in optimizer.state.items()]
        scaler = self.accelerator.scaler
        return Checkpoint(
            step=self.step,
            adapter={name: _on_cpu(parameter) for parameter, name in names.items()},
            optimizer={
                f"{name}:{key}": _on_cpu(value)
                for name, state in states
                for key, value in state.items()
                if key in _STATE
            }
            | {f"{name}{_SUM}": value for name, value in self.sums.items()},
            counters={name: int(state["step"]) for name, state in states},
            learning_rates=[{key: group[key] for key in _RATES} for group in optimizer.param_groups],
            scheduler=self.lr_scheduler.state_dict(),
            scaler=scaler.state_dict() if scaler else None,
            spent=self.spent_so_far() | {"peak_memory_bytes": float(self.peak_bytes())},
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore optimizer, schedule and scaler; `finetune` restores the adapter before."""
        optimizer = _unwrapped(self.optimizer)
        for number, group in enumerate(optimizer.param_groups):
            group |= checkpoint.learning_rates[number]
            for place, parameter in enumerate(group["params"]):
                name = _names(self.model)[parameter]
                if name not in checkpoint.counters:
                    continue  # every step so far was skipped
                # Fill the optimizer's own buffers, because they may be paged.
                optimizer.init_state(group, parameter, number, place)
                state = optimizer.state[parameter]
                state["step"] = checkpoint.counters[name]
                for key in _STATE & state.keys():
                    state[key].copy_(checkpoint.optimizer[f"{name}:{key}"])
        self.lr_scheduler.load_state_dict(checkpoint.scheduler)
        if checkpoint.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.scaler)

    def spent_so_far(self) -> dict[str, float]:
        """Return total, checkpoint and digest seconds of training, including interrupted attempts."""
        if self.began is not None:
            now = time.perf_counter()
            self.spent["train_seconds"] += now - self.began
            self.began = now
        return {key: value for key, value in self.spent.items() if key.endswith("_seconds")}

    def peak_memory(self) -> dict[str, float | int | None]:
        """Return the peak memory of training in bytes, and as a share (0 to 1) of the GPU's memory."""
        peak, total = self.peak_bytes() or None, gpu_memory()
        return {"peak_memory_bytes": peak, "peak_memory_share": peak / total if peak and total else None}

    def peak_bytes(self) -> int:
        """Return the peak memory of training (`system.memory.peak_memory`), including interrupted attempts.

        Loading does not count, and neither does a process that only finishes what an earlier one has trained.
        """
        before = int(self.spent.get("peak_memory_bytes", 0))
        if self.began is None:
            return before
        states = _unwrapped(self.optimizer).state.values()
        paged = [value for state in states for value in state.values() if getattr(value, "is_paged", False)]
        return max(before, peak_memory(sum(value.nbytes for value in paged)))


class _Steps(TrainerCallback):  # type: ignore[misc]
    """Write the trace and checkpoints, and stop on request."""

    def __init__(self, trainer: TracingTrainer) -> None:
        self.trainer = trainer
        self.learning_rate = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        self.trace = append_to(trainer.unfinished.trace)
        if trainer.checkpoint is None:
            self._write(Step(0, adapter=trainer.adapter_digest()))
        else:
            trainer.restore(trainer.checkpoint)
        reset_peak_memory()
        trainer.began = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.learning_rate = kwargs["lr_scheduler"].get_last_lr()[0]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, step = self.trainer, self.trainer.step
        trainer.add_to_sums()
        batch, last = trainer.order[step - 1], step == trainer.end
        began = time.perf_counter()
        # The first update is the first difference between optimizers.
        digest_is_due = step == 1 or last or step % trainer.unfinished.digest_every == 0
        digest = trainer.adapter_digest() if digest_is_due else None
        digested = time.perf_counter()
        done = Step(
            step,
            epoch=step / trainer.steps_per_epoch,
            examples=batch,
            tokens=sum(len(trainer.train_dataset[row]["input_ids"]) for row in batch),
            loss=trainer.loss,
            empty=trainer.loss is None,
            gradient_norm=trainer.gradient_norm,
            learning_rate=self.learning_rate,
            skipped=bool(trainer.accelerator.optimizer_step_was_skipped),
            adapter=digest,
        )
        self._write(done)
        written = time.perf_counter()
        asked = stop_requested()  # read once: a later request stops the next step
        if asked or last or step % trainer.checkpoint_every == 0:
            trainer.checkpoint = trainer.make_checkpoint()
            save_checkpoint(trainer.unfinished, trainer.checkpoint, self.trace)
        trainer.spent["digest_seconds"] += digested - began
        trainer.spent["checkpoint_seconds"] += time.perf_counter() - written
        self._show(done)
        if asked and not last:  # little is left to do after the last step
            stop_if_requested(f"stopped after step {step} of {trainer.end}, with a checkpoint,")
        trainer.progress("finetune", step, trainer.end, trainer.loss)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trace.close()
        self.trainer.spent_so_far()
        self.trainer.spent["peak_memory_bytes"] = float(self.trainer.peak_bytes())
        self.trainer.began = None
        # bitsandbytes lists overridden layers (transformers: all embeddings) and paged state for the process.
        GlobalOptimManager.get_instance().module_weight_config_triple.clear()
        GlobalPageManager.get_instance().paged_tensors.clear()

    def _show(self, step: Step) -> None:
        """Show a step to whoever watches; this time is not that of training."""
        trainer = self.trainer
        if trainer.watch is not None:
            trainer.spent_so_far()
            trainer.watch(step)
            trainer.began = time.perf_counter()

    def _write(self, step: Step) -> None:
        write_whole(self.trace, trace_line(step).encode("utf-8"))


_STATE = {"state1", "state2", "absmax1", "absmax2", "unorm_vec"}
"""bitsandbytes' state of a parameter, except the number of updates and the constant maps."""
_RATES = ("lr", "initial_lr")
_SUM = ":sum"


def saved_name(parameter: str) -> str:
    """Return the name of a trained parameter in the adapter's file."""
    saved, magnitude = parameter.replace(".default.", "."), ".lora_magnitude_vector.weight"
    return saved.removesuffix(".weight") if saved.endswith(magnitude) else saved


def _unwrapped(optimizer: Any) -> Any:
    """Return bitsandbytes' optimizer, which accelerate wraps."""
    return getattr(optimizer, "optimizer", optimizer)


def _names(model: Any) -> dict[Any, str]:
    return {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}


def _on_cpu(tensor: Any) -> Any:
    return tensor.detach().cpu().clone().contiguous()
