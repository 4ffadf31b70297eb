"""The `Device` protocol and everything that stands around a device, whatever it is made of."""

# What the stub beside this file names is imported when it is used: pytest finds its plugin in here, and must not wait
# for torch in projects that have nothing to do with devices.
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
