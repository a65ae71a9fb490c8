"""Everything a training run depends on, in one frozen, validated object."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.chgnet import FreezeDepth, Weights


class TrainConfig(BaseModel):
    """One training run; the keys of a search space are a subset of these fields.

    Constants that are not fields: AdamW (Loshchilov & Hutter, arXiv 1711.05101), the learning rate falls
    along half a cosine to zero over `epochs`, gradients are clipped to norm 1 (see `models/train.py`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: Weights = Field(default="0.3.0", description="pretrained CHGNet weights, or random initialisation")
    freeze_depth: FreezeDepth = Field(
        default="readout",
        description="what trains, counted from the readout backwards; `none` fits the reference alone",
    )
    epochs: int = Field(default=100, ge=0, le=100_000, description="passes over the training rows")
    lr: float = Field(default=1e-3, gt=0, le=1, description="learning rate at the start")
    batch_size: int = Field(default=32, ge=1, le=65_536, description="crystals a step")
    weight_decay: float = Field(default=1e-2, ge=0, le=10, description="decoupled, of AdamW")
    loss: Literal["mae", "mse", "huber", "cross_entropy"] = Field(
        default="mae",
        description="huber turns linear at 0.1 (eV/atom for energies); cross_entropy is that of a classification",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="of fresh weights and the order of the batches")

    @model_validator(mode="after")
    def _nothing_inert(self) -> Self:
        if (self.freeze_depth == "none") != (self.epochs == 0):
            raise ValueError(
                f"freeze_depth {self.freeze_depth!r} with epochs {self.epochs}: "
                "`none` trains nothing, so it goes with epochs 0 and no other level does"
            )
        return self
