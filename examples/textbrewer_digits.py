"""Annealing-KD with TextBrewer: annealing() gives the loss and the schedule to its configuration.
Run:    python examples/textbrewer_digits.py   (needs: pip install '.[textbrewer]' scikit-learn)
Prints: teacher 95.7 %, scratch 92.1 %, annealing_kd 93.9 %
"""

import copy
import logging
import tempfile

import digits
import torch
from textbrewer import BasicDistiller, DistillationConfig, TrainingConfig
from torch.utils.data import DataLoader, TensorDataset

import akd_ext
from akd_ext.adapters.textbrewer import annealing

logging.disable(logging.INFO)
epochs = digits.epochs(__doc__)
train, val, test = digits.data()
teacher = digits.fit(digits.MLP(256), train, val, epochs)
scratch = digits.fit(digits.MLP(8), train, val, 2 * epochs)

# Stage I: TextBrewer keeps the teacher's logits (is_caching_logits) and saves the student after every epoch.
student, kept = digits.MLP(8), []


def keep_the_best(model, step):
    now = digits.accuracy(model, *val)
    if not kept or now > kept[0]:
        kept[:] = now, copy.deepcopy(model.state_dict())


def adaptor(batch, logits):
    return {"logits": logits}


with tempfile.TemporaryDirectory() as folder:
    settings = TrainingConfig(output_dir=folder, log_dir=None, device="cpu", ckpt_frequency=1)
    config = DistillationConfig(**annealing(akd_ext.AnnealingKDLoss(tau_max=10)), is_caching_logits=True)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    loader = DataLoader(TensorDataset(train[0]), batch_size=32, shuffle=True)
    distiller = BasicDistiller(settings, config, teacher, student, adaptor, adaptor)
    with distiller:
        distiller.train(optimizer, loader, epochs, callback=keep_the_best)
# Stage II: the labels, from the best of stage I.
student.load_state_dict(kept[1])
student = digits.fit(student, train, val, epochs, lr=0.002)

digits.report(test, teacher=teacher, scratch=scratch, annealing_kd=student)
