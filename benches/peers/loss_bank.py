"""The paper's loss and the memory bank's work of one step in plain PyTorch, for benches/benches/{loss,bank}.rs.

    python loss_bank.py [threads]        (needs torch and numpy)

Prints the best of five in milliseconds: the loss forward and backward with 32,000 shared negatives
of 128 at batches of 256 and 1,024, then for a bank of 1,281,167 rows the draw of 32,000 with their
gather, and the momentum update of 1,024 rows.
"""
import sys
import time

import torch
import torch.nn.functional as F

N, D, ROWS, TAU = 32_000, 128, 1_281_167, 0.07


def best(name, work):
    work()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    print(f"{name}: {min(times) * 1e3:.1f} ms", flush=True)


def paper(query, positive, negatives):
    z_p = (query * positive).sum(1) / TAU
    z_n = query @ negatives.T / TAU
    log_s = torch.logsumexp(z_n, 1)
    repulsion = F.softplus(z_n - log_s[:, None]).sum(1)
    return (F.softplus(log_s - z_p) + repulsion).mean()


def main():
    if len(sys.argv) > 1:
        torch.set_num_threads(int(sys.argv[1]))
    torch.manual_seed(1)
    negatives = F.normalize(torch.randn(N, D), dim=1)
    for batch in (256, 1024):
        query = F.normalize(torch.randn(batch, D), dim=1).requires_grad_()
        positive = F.normalize(torch.randn(batch, D), dim=1)
        best(f"loss/paper/{batch}",
             lambda: torch.autograd.grad(paper(query, positive, negatives), query))

    bank = F.normalize(torch.randn(ROWS, D), dim=1)
    # With replacement, as VISSL draws: torch.randperm(ROWS)[:N] is the only other way it offers.
    best("bank/draw and gather", lambda: bank[torch.randint(0, ROWS, (N,))])
    best("bank/draw without replacement", lambda: torch.randperm(ROWS)[:N])
    batch = torch.arange(1024) * 999_983 % ROWS
    embeddings = F.normalize(torch.randn(1024, D), dim=1)

    def update():
        bank[batch] = F.normalize(0.5 * bank[batch] + 0.5 * embeddings, dim=1)

    best("bank/update", update)


if __name__ == "__main__":
    main()
