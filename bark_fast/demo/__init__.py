"""The demo checkpoint: a small Bark in transformers' layout that ships with the package.

README.md beside this file is its model card; `recipes/demo_voice/` in the repository made it.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
"""What `Bark.from_pretrained("demo")` loads; transformers loads it too."""
