"""`python -m simple_diffusion`, which launchers like torchrun can start."""

import sys

from simple_diffusion.cli.main import main

sys.exit(main())
