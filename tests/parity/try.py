import sys, time, tempfile, collections
from pathlib import Path
sys.path.insert(0,'/work/main/tests/parity'); sys.path.insert(0,'/work/main')
import transformers, families, oracle
from transformers.utils import chat_template_utils
chat_template_utils.datetime = oracle.Now
data = Path('/work/shared/data')
files = sorted(data.glob('*.jsonl'))
n = int(sys.argv[1]); names = sys.argv[2:] 
t=time.time()
all_ = {f.stem: oracle.read(f) for f in files}
print('read', time.time()-t, {k:len(v) for k,v in all_.items()})
texts = [m.content or '' for ds in all_.values() for d in oracle.sample(ds, 25) for m in d.messages]
print(sum(map(len,texts)))
models={}
tmp=Path(tempfile.mkdtemp())
for name,f in families.FAMILIES.items():
    if names and not any(x in name for x in names): continue
    t=time.time()
    if f.kind not in models: models[f.kind]=families.train(f.kind,texts)
    t1=time.time()
    pair=oracle.Pair(f, families.write(f, models[f.kind], tmp/name.replace(' ','_')))
    t2=time.time()
    total=collections.Counter(); diff=[]
    for stem,ds in all_.items():
        t3=time.time()
        r=oracle.compare(pair, ds if n > 999 else oracle.sample(ds,n), n<1000); total+=r.counts; diff+=r.different[:4]
        if n>999: print('ROW', repr((name, stem, round(time.time()-t3,1), dict(r.counts))), flush=True)
    print(f'{name}: train {t1-t:.1f} open {t2-t1:.1f} run {time.time()-t2:.1f}', dict(total), flush=True)
    for d in diff[:40 if n>999 else 6]: print('   ', d[:900])
