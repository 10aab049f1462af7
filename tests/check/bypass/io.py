# expect: NSB401
import pandas as pd
pd.read_csv("/etc/passwd")
# ---
# expect: NSB401
import pandas as pd
pd.read_csv("/input/../etc/passwd")
# ---
# expect: NSB401
import pandas as pd
pd.read_csv("/input")
# ---
# expect: NSB401
import pandas as pd
pd.read_csv("/inputs/x")
# ---
# expect: NSB401
import pandas as pd
pd.read_csv("http://example.com/x")
# ---
# expect: NSB401
import pandas as pd
pd.read_csv("file:///etc/passwd")
# ---
# expect: NSB401
import pandas as pd
pd.read_csv("/input/x::http://example.com")
# ---
# expect: NSB401
import pandas as pd
pd.read_csv("~root/x")
# ---
# expect: NSB401
import pandas as pd
pd.read_csv("../etc/passwd")
# ---
# expect: NSB401
import pandas as pd
pd.read_csv(path)
# ---
# expect: NSB401
import pandas as pd
pd.read_csv(filepath_or_buffer=path)
# ---
# expect: NSB401
import pandas as pd
pd.read_csv(*args)
# ---
# expect: NSB401
import pandas as pd
pd.read_csv(**kw)
# ---
# expect: NSB401
from pandas import read_csv as r
r("/etc/passwd")
# ---
# expect: NSB401
import pandas as pd
f = pd.read_csv
f("/etc/passwd")
# ---
# expect: NSB401
import numpy as np
np.loadtxt("/etc/passwd")
# ---
# expect: NSB401
import numpy as np
np.load("/etc/x.npy")
# ---
# expect: NSB401
import numpy as np
np.fromfile("/dev/mem")
# ---
# expect: NSB401
import pandas as pd
p = "/input/x"
p = "/etc/passwd"
pd.read_csv(p)
# ---
# expect: NSB401
import pandas as pd
p = "/input/x"
p += "/../../etc/passwd"
pd.read_csv(p)
# ---
# expect: NSB401
import pandas as pd
pd.read_csv("/input/" + name)
# ---
# expect: NSB401
import pandas as pd
class StringIO:
    pass
pd.read_csv(StringIO())
# ---
# expect: NSB401
import pyarrow.parquet as pq
pq.read_table("/etc/x")
# ---
# expect: NSB402
df.to_csv("/etc/x")
# ---
# expect: NSB402
df.to_csv("/input/x")
# ---
# expect: NSB402
df.to_csv("/output/../etc/x")
# ---
# expect: NSB402
df.to_csv(path_or_buf=p)
# ---
# expect: NSB402
df.to_csv("/work/numpy.py")
# ---
# expect: NSB402
df["a"].to_json("/etc/x")
# ---
# expect: NSB402
import pandas as pd
pd.DataFrame.to_csv(df, "/etc/x")
# ---
# expect: NSB402
import numpy as np
np.save("/etc/x", a)
# ---
# expect: NSB402
import numpy as np
np.savetxt("/etc/x", a)
# ---
# expect: NSB402
a.tofile("/etc/x")
# ---
# expect: NSB402
import matplotlib.pyplot as plt
plt.savefig("/etc/x.png")
# ---
# expect: NSB402
import pandas as pd
pd.ExcelWriter("/etc/x.xlsx")
# ---
# expect: NSB402
import logging
logging.FileHandler("/etc/x")
# ---
# expect: NSB402
df.to_csv(sep=",", **{"path_or_buf": "/etc/x"})
# ---
# expect: NSB403
import numpy as np
np.load("/input/x.npy", allow_pickle=True)
# ---
# expect: NSB403
import numpy as np
np.load("/input/x.npy", None, True)
# ---
# expect: NSB403
import numpy as np
np.load("/input/x.npy", allow_pickle=flag)
# ---
# expect: NSB404
list(map(df.to_csv, ["/etc/x"]))
# ---
# expect: NSB404
df.pipe(pd.DataFrame.to_csv, "/etc/x")
# ---
# expect: NSB404
import pandas as pd
[pd.read_csv][0]("/etc/passwd")
# ---
# expect: NSB404
from pandas import read_csv
map(read_csv, ["/etc/passwd"])
# ---
# expect: NSB404
getattr(df, "to_csv")("/etc/x")
# ---
# expect: NSB404
getattr(df, "to_" + "csv")("/etc/x")
# ---
# expect: NSB203
import pandas as pd
pd.read_pickle("/input/x")
# ---
# expect: NSB203
pd.read_sql("select 1", "sqlite:////work/x")
# ---
# expect: NSB402
import logging
logging.basicConfig(filename="/etc/x")
# ---
# expect: NSB402
import pyarrow.parquet as pq
pq.write_table(table, "/etc/x")
