"""Use HEIN inside a PyTorch model of your own: no Ray, no LLM.

    pip install reki-ray
    python examples/hein_only.py

The data are random, and the model learns them in about two seconds.
"""

import torch
from torch import nn

from reki_ray import HEIN

USERS, ITEMS, CLICKS = 300, 100, 4_000
TEXT_DIM, FIELD_DIM = 64, 16

torch.manual_seed(0)

# One vector per user and item that describes them in words. Here they are random; in your project
# they are encoded answers of an LLM (extract_only.py) or of any text (`encode_texts`).
user_texts, item_texts = torch.randn(USERS, TEXT_DIM), torch.randn(ITEMS, TEXT_DIM)

# Clicks that follow the texts: a user clicks on items whose text points the same way.
users, items = torch.randint(USERS, (CLICKS,)), torch.randint(ITEMS, (CLICKS,))
clicks = ((user_texts[users] * item_texts[items]).sum(dim=1) > 0).float()


class ClickModel(nn.Module):
    """Your model: id embeddings, and HEIN's augmented vectors as two additional fields."""

    def __init__(self) -> None:
        super().__init__()
        self.user_ids = nn.Embedding(USERS, FIELD_DIM)
        self.item_ids = nn.Embedding(ITEMS, FIELD_DIM)
        # Experts of width 64; two serve both sides, three serve users only, three items only.
        self.hein = HEIN(
            input_dim=TEXT_DIM, hidden=64, output=FIELD_DIM, shared_experts=2, dedicated_experts=3
        )
        self.head = nn.Sequential(nn.Linear(4 * FIELD_DIM, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        fields = [
            self.user_ids(users),
            self.item_ids(items),
            self.hein.users(user_texts[users]),
            self.hein.items(item_texts[items]),
        ]
        return self.head(torch.cat(fields, dim=1)).squeeze(1)


model = ClickModel()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for epoch in range(5):
    losses = []
    for batch in torch.randperm(CLICKS).split(256):
        loss = nn.functional.binary_cross_entropy_with_logits(
            model(users[batch], items[batch]), clicks[batch]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"epoch {epoch + 1}: training loss {sum(losses) / len(losses):.3f}")

# An augmented vector depends on its own text only, so compute all of them once after training and
# look them up while serving (store_only.py): no expert runs online.
with torch.no_grad():
    stored = model.hein.items(item_texts)
print(f"augmented item vectors: {tuple(stored.shape)}")
