"""The masked autoencoder written out: one image, one view, one head and one token after the other."""

import math

import torch


def naive_norm(norm, token):
    centred = token - token.mean()
    return norm.weight * centred / (centred.square().mean() + 1e-5).sqrt() + norm.bias


def naive_block(block, tokens):
    """One sequence (V, D), one head after the other, one query after the other."""
    width = tokens.shape[1]
    each = width // block.heads
    qkv = torch.stack([block.qkv.weight @ naive_norm(block.norm1, token) + block.qkv.bias for token in tokens])
    attended = torch.zeros_like(tokens)
    for head in range(block.heads):
        q, k, v = (qkv[:, part * width + head * each :][:, :each] for part in range(3))
        for i, query in enumerate(q):
            weight = (k @ query / math.sqrt(each)).exp()
            attended[i, head * each : (head + 1) * each] = (weight / weight.sum()) @ v
    tokens = tokens + attended @ block.proj.weight.T + block.proj.bias
    result = []
    for token in tokens:
        inner = block.fc1.weight @ naive_norm(block.norm2, token) + block.fc1.bias
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))  # GELU
        result.append(token + block.fc2.weight @ inner + block.fc2.bias)
    return torch.stack(result)


def naive_view(network, token, hidden):
    """What one view of one image (L, P) predicts, (L, P)."""
    seen = [place for place in range(len(token)) if not hidden[place]]
    embed, positions = network.patch_embed, network.encoder_positions
    x = torch.stack([embed.weight @ (token[i] - network.token_mean) + embed.bias + positions[i] for i in seen])
    for block in network.encoder_blocks:
        x = naive_block(block, x)
    sequence, embed = [network.mask_token] * len(token), network.decoder_embed
    for place, one in zip(seen, x, strict=True):
        sequence[place] = embed.weight @ naive_norm(network.encoder_norm, one) + embed.bias
    x = torch.stack([one + network.decoder_positions[place] for place, one in enumerate(sequence)])
    for block in network.decoder_blocks:
        x = naive_block(block, x)
    last = network.decoder_pred
    return torch.stack([last.weight @ naive_norm(network.decoder_norm, one) + last.bias for one in x])
