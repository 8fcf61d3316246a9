"""The denoising objective: three orthogonal choices, and where the error is measured.

`prediction` is what the network outputs, `loss` the space in which the error is measured, and
`weighting` a function of λ. Simple diffusion is v / eps / uniform with the multiscale loss; SiD2 is
v / eps / sigmoid with the density correction; JiT is x0 / u / uniform.
"""

from dataclasses import dataclass, field

from torch import Tensor

from simple_diffusion.diffusion.guidance import Network
from simple_diffusion.diffusion.logsnr import at_least_float32, match_dims
from simple_diffusion.diffusion.multiscale import multiscale_loss, side_length
from simple_diffusion.diffusion.objectives.base import Batch, Losses
from simple_diffusion.diffusion.prediction import Prediction, diffuse, error_factor, target
from simple_diffusion.diffusion.schedules import Schedule
from simple_diffusion.diffusion.timesteps import TimeDistribution, UniformTime
from simple_diffusion.diffusion.weighting import Uniform, Weighting, density_correction


@dataclass(frozen=True)
class Denoising:
    """Weighted squared error of the network's prediction.

    Attributes:
        schedule: t -> λ.
        prediction: what the network outputs.
        loss: the prediction whose error is measured.
        weighting: λ -> weight of that error.
        times: the distribution that the batch's t were drawn from.
        multiscale_from: coarsest scale of the multiscale loss in pixels; None for plain MSE.
            The sum is multiplied by the image's side √(H·W), so that the finest scale has weight
            1 and gradient clipping means the same with and without it.
        correct_density: multiply by -(dλ/dt)/p(t).
    """

    schedule: Schedule
    prediction: Prediction = "v"
    loss: Prediction = "eps"
    weighting: Weighting = field(default_factory=Uniform)
    times: TimeDistribution = field(default_factory=UniformTime)
    multiscale_from: int | None = None
    correct_density: bool = False

    def weights(self, t: Tensor) -> Tensor:
        """The weight of each sample's error, shape of `t`."""
        weight = self.weighting(self.schedule(t), self.loss)
        if self.correct_density:
            correction = density_correction(self.schedule.derivative(t), self.times.density(t))
            weight = weight * correction
        return weight

    def measure(self, error: Tensor) -> tuple[Tensor, Tensor]:
        """(squared error at all scales, plain mean squared error) of each image, both (B,)."""
        mse = error.square().mean(dim=(1, 2, 3))
        if self.multiscale_from is None:
            return mse, mse
        return side_length(*error.shape[-2:]) * multiscale_loss(error, self.multiscale_from), mse

    def __call__(self, network: Network, batch: Batch, teacher: Network | None = None) -> Losses:
        """Loss of each image; the term `<loss>_mse` is its unweighted, single-scale error.

        There is nothing here for a teacher to do.
        """
        logsnr = self.schedule(batch.t)
        z = diffuse(batch.x0, batch.eps, logsnr)
        output = at_least_float32(network(z, logsnr, batch.labels))
        error = output - target(self.prediction, batch.x0, batch.eps, logsnr)
        error = error * match_dims(error_factor(logsnr, self.prediction, self.loss), error)
        measured, mse = self.measure(error)
        return Losses(self.weights(batch.t) * measured, {f"{self.loss}_mse": mse.detach()})
