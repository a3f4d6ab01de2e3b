"""Writes losses.json: the three losses and their gradients by torch autograd, in double precision.

    python make_losses.py        (needs torch and numpy)

Inputs come from benches/formula.py, so the file holds results alone: for each case the loss, the
L2 norm of the gradient with respect to the query, and 64 of its entries (index 37 i modulo size).
"""
import json
import math
import os
import sys

import torch
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../../benches"))
from formula import fill  # noqa: E402

B, N, D, M = 5, 203, 19, 997
EPS = 1.1920929e-7


def unit(seed, rows, columns):
    x = torch.from_numpy(fill(seed, rows, columns))
    # Normalised in double and rounded: Rust does the same, so both start from the same numbers.
    return F.normalize(x.double(), dim=1).float().double()


def paper(z_p, z_n, keep, _tau):
    losses = []
    for b in range(B):
        p, n = z_p[b], z_n[b][keep[b]]
        log_s = torch.logsumexp(n, 0)
        # -log h = log(exp(z_p) + S) - z_p; -log(1 - h_n) = log(exp(z_n) + S) - log S
        loss = torch.logaddexp(p, log_s) - p
        losses.append(loss + (torch.logaddexp(n, log_s) - log_s).sum())
    return torch.stack(losses).mean()


def nce(z_p, z_n, keep, _tau):
    scores = torch.cat([torch.cat([z_p[b : b + 1], z_n[b][keep[b]]]) for b in range(B)])
    z = M * torch.exp(scores).mean().detach()
    losses = []
    for b in range(B):
        n = z_n[b][keep[b]]
        k = len(n)
        p0, pn = torch.exp(z_p[b]) / z, torch.exp(n) / z
        noise = k / M
        ratio = torch.log(p0 / (p0 + noise + EPS))
        losses.append(-(ratio + torch.log(noise / (pn + noise + EPS)).sum()))
    return torch.stack(losses).mean()


def infonce(z_p, z_n, keep, _tau):
    losses = []
    for b in range(B):
        logits = torch.cat([z_p[b : b + 1], z_n[b][keep[b]]])
        losses.append(F.cross_entropy(logits[None], torch.zeros(1, dtype=torch.long)))
    return torch.stack(losses).mean()


def main():
    cases = []
    bank = unit(3, M, D)
    own = [None, 0, 7, N - 1, None]
    per_image = [[(b * 131 + n * 89 + 5) % M for n in range(N)] for b in range(B)]
    for kind, function in (("paper", paper), ("nce", nce), ("infonce", infonce)):
        for sampling in ("shared", "per-image"):
            for tau in (0.07, 0.1, 1.0):
                query = unit(1, B, D).requires_grad_()
                positive = unit(2, B, D)
                keep = torch.ones(B, N, dtype=torch.bool)
                if sampling == "shared":
                    z_n = query @ bank[:N].T / tau
                    for b, column in enumerate(own):
                        if column is not None:
                            keep[b, column] = False
                else:
                    z_n = torch.einsum("bd,bnd->bn", query, bank[torch.tensor(per_image)]) / tau
                loss = function((query * positive).sum(1) / tau, z_n, keep, tau)
                (gradient,) = torch.autograd.grad(loss, query)
                flat = gradient.flatten()
                sample = [flat[37 * i % len(flat)].item() for i in range(64)]
                cases.append(dict(kind=kind, sampling=sampling, temperature=tau, loss=loss.item(),
                                  norm=flat.norm().item(), sample=sample))
    logits = torch.from_numpy(fill(4, 6, 24)).double() * 5
    logits.requires_grad_()
    loss = F.cross_entropy(logits, torch.tensor([0, 23, 5, 5, 11, 2]))
    (gradient,) = torch.autograd.grad(loss, logits)
    covariant = dict(loss=loss.item(), norm=gradient.norm().item(),
                     sample=[gradient.flatten()[37 * i % 144].item() for i in range(64)])
    assert all(math.isfinite(case["loss"]) for case in cases)
    with open(os.path.join(HERE, "losses.json"), "w") as file:
        json.dump(dict(contrastive=cases, covariant=covariant), file, indent=0)
        file.write("\n")


if __name__ == "__main__":
    main()
