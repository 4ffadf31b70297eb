import tempfile, os, sys, traceback
from pathlib import Path
sys.path.insert(0,'/tmp/w/files')
import tests.damaged_files as df
s=Path(tempfile.mkdtemp()); f=Path(tempfile.mkdtemp()); df.make_samples(s); os.chdir(f)
import random, shutil
from tests.damage import *
for name in ["check","characterisation"]:
    kind=df.KINDS_OF_FILES[name]; content=(s/kind.file).read_bytes()
    rng=random.Random(f"{name} 0")
    rng.sample(list(HOSTILE.items()), len(HOSTILE))
    vs=list(damaged(content,rng,150))+list(damaged_values(content,'json',rng,150))
    import time; t=time.time()
    for what,data in vs:
        if time.time()-t>100: break
        for p in f.iterdir(): p.unlink()
        (f/kind.file).write_bytes(data)
        try: o=df._run(kind.command, what)
        except AssertionError as e:
            c=e.__cause__
            print(name, what, "|", (str(e)[:300] if c is None else f"{type(c).__name__}: {c} "+ "".join(traceback.format_tb(c.__traceback__)[-2:])), flush=True)
print("done")
