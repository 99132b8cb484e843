"""Makes the helper modules beside this file importable from every test folder; one thread, as in training."""

import torch

torch.set_num_threads(1)
