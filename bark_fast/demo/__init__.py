"""The demo checkpoint: a small Bark of our own, in transformers' layout, that ships with the
package. README.md beside this file is its model card; `demo/` in the repository is how it was made.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
"""What `Bark.from_pretrained("demo")` loads; transformers loads it too."""
