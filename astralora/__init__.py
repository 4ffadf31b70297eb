"""Train PyTorch models through photonic and analog accelerators, simulated or real.

    import astralora as al

    device = al.open_device("mrr", in_features=256, out_features=128, impairments="lab")
    model = al.attach(model, {"classifier.1": device})

The result is an ordinary PyTorch model for an ordinary training loop. The names of this package are those that most
programs need; everything else is in its subpackages, such as `astralora.devices` and `astralora.simulators`.
"""

# The stub beside this file names what is public; each name is imported when it is first used. The pytest plugin and the
# command line rely on that: neither may wait for torch before it is needed.
import lazy_loader

from .version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
