"""The same computations in a straightforward way, in the manner of the code published with the paper: what `speed.py`
compares with. The whole network runs at every call (or, with `once`, all but the prior), everything is float32 and
contiguous, loops are Python's, and `backward` computes the gradients of all weights."""
import copy

import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from learned_perturbations.networks import NarrowConv2d


class Transformer(nn.Module):
    "One spatial transformer: a small network that looks at the code and says how to warp the image."
    def __init__(self, size):
        super().__init__()
        self.localization = nn.Sequential(nn.Linear(size**2, 512), nn.ReLU(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 6))
    def forward(self, x, code):
        grid = F.affine_grid(self.localization(code.flatten(1)).view(-1, 2, 3), x.shape, align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


class STNGenerator(nn.Module):
    "Five transformers one after the other and a convolutional blend, with the weights of ours."
    def __init__(self, ours, size=42, k=128):
        super().__init__()
        loc = ours.localization
        self.fc, self.stns = nn.Linear(k, size**2), nn.ModuleList(Transformer(size) for _ in range(loc.n))
        self.block, self.conv = copy.deepcopy(ours.block), copy.deepcopy(ours.conv)
        with torch.no_grad():
            first = loc.first.weight
            if isinstance(ours.fc, nn.Identity):  # ours was multiplied into one layer: the code goes into the first k pixels
                self.fc.weight.copy_(torch.eye(size**2, k)); self.fc.bias.zero_()
                first = F.pad(first, (0, size**2 - k))
            else: self.fc.load_state_dict(ours.fc.state_dict())
            for i, stn in enumerate(self.stns):
                dense = [m for m in stn.localization if isinstance(m, nn.Linear)]
                rows = slice(512 * i, 512 * (i + 1))
                sources = ((first[rows], loc.first.bias[rows]), (loc.weight[i].T, loc.bias[i, 0]),
                           (loc.affine[i].T, loc.identity[i, 0]))
                for layer, (weight, bias) in zip(dense, sources): layer.weight.copy_(weight); layer.bias.copy_(bias)
    def forward(self, x, z):
        code = self.fc(z)
        h = self.block(torch.cat([stn(x, code) for stn in self.stns], 1))
        return torch.sigmoid(self.conv(F.pad(h, (2,) * 4, "reflect")))


class FCGenerator(nn.Module):
    "Image and code side by side through two dense layers, with the weights of ours."
    def __init__(self, ours):
        super().__init__()
        self.shape, self.fc3, self.fc4 = ours.shape, copy.deepcopy(ours.fc3), copy.deepcopy(ours.fc4)
    def forward(self, x, z):
        return torch.sigmoid(self.fc4(F.relu(self.fc3(torch.cat([x.flatten(1), z], 1))))).view(-1, *self.shape)


class OtherGenerator(nn.Module):
    "Ours as it is: the convolutional and the residual generator keep nothing between calls."
    def __init__(self, ours):
        super().__init__()
        self.ours = copy.deepcopy(ours)
    def forward(self, x, z): return torch.sigmoid(self.ours(self.ours.features(x), z))


class PlainCVAE(nn.Module):
    "A CVAE with the weights of ours and nothing kept between calls."
    def __init__(self,
        cvae, # one of ours
    ):
        super().__init__()
        self.prior, self.recognition, self.latent_dim = copy.deepcopy(cvae.prior), copy.deepcopy(cvae.recognition), cvae.latent_dim
        kinds = dict(STNGenerator=STNGenerator, FCGenerator=FCGenerator)
        self.generator = kinds.get(type(cvae.generator).__name__, OtherGenerator)(cvae.generator)
        for m in self.modules():
            if isinstance(m, NarrowConv2d): m.__class__ = nn.Conv2d  # the same weights
        self.to(memory_format=torch.contiguous_format).train(cvae.training)
    def decode(self, x, prior, u): return self.generator(x, prior[0] + u * torch.exp(.5 * prior[1]))
    def sample(self, x, u): return self.decode(x, self.prior(x), u)
    def forward(self, x, x_tilde, eps):
        prior, (mu, logvar) = self.prior(x), self.recognition(torch.cat([x, x_tilde], 1))
        return self.generator(x, mu + eps * torch.exp(.5 * logvar)), prior, (mu, logvar)


def pgd(
    model,      # classifier
    cvae,       # a PlainCVAE
    x,          # images, (B, C, H, W): one, or a batch
    y,          # labels, (B,)
    radius,     # of the ball
    start,      # where to start, (B, k)
    steps=50,   # number of steps
    once=False, # compute the prior once, as published; False: at every step
):
    "Returns the images after the last step, (B, C, H, W). Steps as long as the radius, every example projected into its ball."
    with torch.no_grad(): prior = cvae.prior(x)
    decode = (lambda u: cvae.decode(x, prior, u)) if once else (lambda u: cvae.sample(x, u))
    u = start.clone()
    for _ in range(steps):
        u = u.detach().requires_grad_()
        F.cross_entropy(model(decode(u)), y).backward()
        with torch.no_grad():
            g = u.grad / u.grad.norm(dim=1, keepdim=True).clamp_min(1e-30)
            u = (u + radius * g).renorm(2, 0, radius)
    return decode(u).detach()


@torch.no_grad()
def certify(
    model,      # classifier
    cvae,       # a PlainCVAE
    x,          # one image, (C, H, W)
    sigma,      # standard deviation of the noise
    n0=100,     # draws that choose the class
    n=10_000,   # draws that bound its probability
    alpha=.001, # probability with which the certificate may be wrong
    batch=128,  # draws at a time
    classes=10, # number of classes
    once=False, # compute the prior once for all draws, as published; False: at every call
):
    "Returns class (-1: abstain), radius and counts of all classes for one image: Cohen et al. 2019, counted draw by draw."
    prior = cvae.prior(x[None])
    def count(left):
        counts = torch.zeros(classes, dtype=torch.long, device=x.device)
        while left > 0:
            m = min(batch, left)
            left -= m
            u, many = sigma * torch.randn(m, cvae.latent_dim, device=x.device), x.expand(m, -1, -1, -1)
            images = cvae.decode(many, prior, u) if once else cvae.sample(many, u)
            for c in model(images).argmax(1): counts[c] += 1
        return counts
    top, counts = count(n0).argmax().item(), count(n)
    hits = counts[top].item()
    p = stats.beta.ppf(alpha, hits, n - hits + 1) if hits else 0.
    return (top, sigma * stats.norm.ppf(p), counts) if p > .5 else (-1, 0., counts)


def train(
    net,     # a PlainCVAE, trained in place
    batches, # list of pairs (x, x_tilde)
    lr=1e-3, # of Adam
    beta=1., # weight of the KL
):
    "Returns the mean reconstruction, KL and loss of each step, lists: every one is brought to Python at every step."
    optimizer, log = torch.optim.Adam(net.parameters(), lr=lr), []
    for x, x_tilde in batches:
        optimizer.zero_grad()
        eps = torch.randn(len(x), net.latent_dim, device=x.device)
        reconstruction, kl = loss(net, x, x_tilde, eps)
        (reconstruction + beta * kl).backward()
        optimizer.step()
        log.append((reconstruction.item() / len(x), kl.item() / len(x), (reconstruction.item() + beta * kl.item()) / len(x)))
    return log


def loss(net, x, x_tilde, eps):
    "Returns the two parts of the loss, summed over the batch: binary cross-entropy, and the KL."
    images, (mu_p, logvar_p), (mu, logvar) = net(x, x_tilde, eps)
    kl = .5 * (logvar.exp() / logvar_p.exp() + (mu - mu_p)**2 / logvar_p.exp() - 1 + logvar_p - logvar).sum()
    return F.binary_cross_entropy(images, x_tilde, reduction="none").sum(), kl
