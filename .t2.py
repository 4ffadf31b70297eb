import tempfile, os, sys, traceback
from pathlib import Path
sys.path.insert(0,'/tmp/w/files')
import tests.damaged_files as df
s=Path(tempfile.mkdtemp()); os.chdir(s)
df._invoke("check", "--device", "slm", "--in-features","4","--out-features","4", "--out", "check.json", "--budget-programs", "80")
import random
from tests.damage import *
content=Path("check.json").read_bytes()
rng=random.Random("check 0"); rng.sample(list(HOSTILE.items()), len(HOSTILE))
n=0
for what,data in damaged(content,rng,150):
    if not what.startswith("remove"): continue
    n+=1
    if n>3: break
    Path("check.json").write_bytes(data)
    r=df._invoke("report","check.json","-o","page.html")
    print(what, r.exit_code, repr(r.exception)[:300], repr(r.output[-400:]), flush=True)
    if r.exception and not isinstance(r.exception, SystemExit): traceback.print_tb(r.exception.__traceback__)
