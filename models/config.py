"""Everything a training run depends on, in frozen, validated objects: one class a model.

A field that would change nothing beside the others is refused, not ignored.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ModelConfig(BaseModel):
    """The base of every model's config; the keys of a search space are its fields but for `seed`.

    Attributes:
        only_with: fields that matter only where another one has certain values: {field: (other, values)}.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    only_with: ClassVar[dict[str, tuple[str, tuple[Any, ...]]]] = {}

    seed: int = Field(default=0, ge=0, lt=2**31, description="of fresh weights and of everything random in training")

    @model_validator(mode="after")
    def _nothing_inert(self) -> Self:
        for field, (condition, values) in self.only_with.items():
            value, default = getattr(self, field), type(self).model_fields[field].default
            if value != default and getattr(self, condition) not in values:
                raise ValueError(
                    f"{field} {value!r} changes nothing with {condition} {getattr(self, condition)!r}; "
                    f"it goes with {condition} {' or '.join(map(str, values))}"
                )
        return self

    def effective(self, n_train: int) -> dict[str, Any]:  # noqa: ARG002 - that of a subclass asks for it
        """The fields as they act on so many training rows: the limit in place of what lies beyond one.

        Two configs for which this is equal leave the same model, on these rows and perhaps not on more.
        """
        return self.model_dump()


class GradientConfig(ModelConfig):
    """A network trained by gradient descent: the levers every such model has.

    Sources: Adam, Kingma & Ba, arXiv 1412.6980; AdamW, Loshchilov & Hutter, 1711.05101; RAdam, Liu et al., 1908.03265;
    clipping, Pascanu et al., 1211.5063; cosine, Loshchilov & Hutter, 1608.03983; one-cycle, Smith & Topin, 1708.07120;
    warm-up, Goyal et al., 1706.02677; averages of weights, Polyak & Juditsky, SIAM J. Control Optim. 30, 838 (1992),
    exponential, Tarvainen & Valpola, 1703.01780, stochastic, Izmailov et al., 1803.05407; snapshot ensembles, Huang et
    al., 1704.00109; mixup, Zhang et al., 1710.09412, inside a network: Verma et al., 1806.05236. docs/models.md has
    those of the other levers, and says which are common practice without one source.
    """

    only_with: ClassVar[dict[str, tuple[str, tuple[Any, ...]]]] = {
        "loss_delta": ("loss", ("huber", "log_cosh")),
        "warmup": ("schedule", ("constant", "cosine", "exponential", "plateau")),
        "lr_end": ("schedule", ("exponential",)),
        "patience": ("schedule", ("plateau",)),
        "ema_decay": ("averaging", ("ema",)),
        "swa_start": ("averaging", ("swa",)),
        "snapshots": ("averaging", ("snapshots",)),
        "mixup_alpha": ("mixup", (True,)),
        "mixup_probability": ("mixup", (True,)),
    }

    epochs: int = Field(default=100, ge=0, le=100_000, description="passes over the training rows")
    batch_size: int = Field(default=32, ge=1, le=65_536, description="rows a step")

    optimizer: Literal["adamw", "adam", "radam"] = Field(default="adamw", description="rule of a step")
    lr: float = Field(default=1e-3, gt=0, le=1, description="largest learning rate")
    weight_decay: float = Field(default=1e-2, ge=0, le=10, description="decoupled; for adam part of the gradient")
    gradient_clip: float = Field(default=1.0, ge=0, description="largest norm of the gradient of a step; 0: no limit")
    schedule: Literal["cosine", "constant", "one_cycle", "exponential", "plateau"] = Field(
        default="cosine", description="of the learning rate; cosine falls to zero along half a wave"
    )
    warmup: float = Field(default=0.0, ge=0, lt=1, description="share of all steps in which the rate rises from zero")
    lr_end: float = Field(default=0.01, gt=0, lt=1, description="of exponential: last learning rate / lr")
    patience: int = Field(default=5, ge=1, description="of plateau: epochs without a better one before the rate halves")

    loss: Literal["mae", "mse", "huber", "log_cosh", "cross_entropy"] = Field(
        default="mae", description="of what the network is to say; cross_entropy is that of a classification"
    )
    loss_delta: float = Field(
        default=0.1,
        gt=0,
        description="error where huber turns linear, and scale of log_cosh, in the network's unit",
    )
    target_scale: Literal["natural", "standard", "robust"] = Field(
        default="natural",
        description="unit of the network: natural is eV for pretrained energies and standard otherwise; standard "
        "subtracts the mean and divides by the standard deviation, robust takes median and median deviation",
    )
    mixup: bool = Field(default=False, description="mix pairs of rows inside the network, and their targets")
    mixup_alpha: float = Field(default=0.2, gt=0, description="shares are drawn from Beta(alpha, alpha)")
    mixup_probability: float = Field(default=0.5, gt=0, le=1, description="of a batch to be mixed")

    averaging: Literal["none", "ema", "swa", "snapshots"] = Field(
        default="none",
        description="what is judged and kept: the weights as they are; their exponential moving average; their mean "
        "over epochs; or the mean prediction of weights at the end of each of several cosine cycles",
    )
    ema_decay: float = Field(default=0.99, gt=0, lt=1, description="a step")
    swa_start: float = Field(default=0.75, ge=0, lt=1, description="share of the epochs before the mean begins")
    snapshots: int = Field(default=4, ge=2, description="cycles")
    keep: Literal["best", "last"] = Field(default="best", description="epoch whose model is kept, by validation or not")

    @model_validator(mode="after")
    def _fits_epochs(self) -> Self:
        if self.averaging == "snapshots" and self.schedule != "cosine":
            raise ValueError(f"averaging snapshots with schedule {self.schedule!r}: its cycles are those of cosine")
        if self.averaging == "snapshots" and self.warmup:
            raise ValueError(f"averaging snapshots with warmup {self.warmup}: its cycles begin at the full rate")
        if self.averaging == "snapshots" and (not self.epochs or self.epochs % self.snapshots):
            raise ValueError(
                f"snapshots {self.snapshots} with epochs {self.epochs}: a cycle takes whole epochs, so that each "
                "snapshot is taken where the rate has fallen to zero"
            )
        if self.schedule == "plateau" and self.patience >= self.epochs:
            raise ValueError(f"patience {self.patience} with epochs {self.epochs}: the rate would never fall")
        if self.loss == "cross_entropy" and self.target_scale != "natural":
            raise ValueError(f"target_scale {self.target_scale!r} with loss cross_entropy: classes have no scale")
        return self

    def rows_a_step(self, n_train: int) -> int:
        """Rows of a batch, where there are so many training rows."""
        return min(self.batch_size, n_train)

    def effective(self, n_train: int) -> dict[str, Any]:
        """See `ModelConfig`: a batch has no more rows than there are, and few steps reach no slow decay."""
        fields = super().effective(n_train)
        fields["batch_size"] = self.rows_a_step(n_train)
        if self.averaging == "ema":
            n_steps = self.epochs * math.ceil(n_train / fields["batch_size"])
            fields["ema_decay"] = min(self.ema_decay, largest_decay(n_steps))
        return fields


def largest_decay(step: int) -> float:
    """The decay of `averaging: ema` at a step, from 1: less at first, when the past is the untrained network.

    As in TensorFlow's `ExponentialMovingAverage`.
    """
    return (1 + step) / (10 + step)
