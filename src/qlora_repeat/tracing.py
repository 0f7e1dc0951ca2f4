"""A Trainer that keeps every step's exact loss and gradient norm."""

from typing import Any

from transformers import Trainer, TrainerCallback

from qlora_repeat.watch import Report


class TracingTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer, with the trace of its optimizer steps in `trace`.

    Its own log rounds losses to four digits and, by default, hides those that are not finite.
    """

    def __init__(self, *args: Any, report: Report, **kwargs: Any) -> None:
        self.trace: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)
        self.add_callback(_Progress(self.trace, report))

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        self.trace.append({"step": self.state.global_step + 1, "loss": loss.item()})
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        self.trace[-1]["gradient_norm"] = float(norm) if norm is not None else None
        return norm


class _Progress(TrainerCallback):  # type: ignore[misc]
    def __init__(self, trace: list[dict[str, Any]], report: Report) -> None:
        self.trace, self.report = trace, report

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = self.trace[-1]
        step["learning_rate"] = kwargs["lr_scheduler"].get_last_lr()[0]
        step["epoch"] = state.epoch
        self.report(state.global_step, state.max_steps, step["loss"])
