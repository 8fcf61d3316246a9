"""The mathematics of diffusion: tensors in, tensors out.

Symbols used throughout: `x0` is the clean image in [-1, 1], shape (B, C, H, W); `eps` standard
normal noise; `t` in [0, 1] with 0 = data and 1 = noise; `logsnr` is λ = log(α²/σ²), variance
preserving, so α² = sigmoid(λ) and σ² = sigmoid(-λ); `z = α x0 + σ eps`. On the straight path,
τ = σ/(α+σ) and y = z/(α+σ) = (1-τ) x0 + τ eps.
"""
