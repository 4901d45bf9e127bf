"""What to cite for a method: BibTeX entries by the method's lower-case name, and one for this software.

A method of another package says what to cite in a class attribute, `citation: ClassVar[str]`, which holds BibTeX.
"""

from __future__ import annotations

from .. import __version__
from .registry import METHODS

REFACT = """@inproceedings{arad2024refact,
  title     = {{ReFACT}: Updating Text-to-Image Models by Editing the Text Encoder},
  author    = {Arad, Dana and Orgad, Hadas and Belinkov, Yonatan},
  booktitle = {Proceedings of the 2024 Conference of the North American Chapter of the Association for Computational
               Linguistics: Human Language Technologies (Volume 1: Long Papers)},
  pages     = {2537--2558},
  year      = {2024},
  doi       = {10.18653/v1/2024.naacl-long.140},
  note      = {arXiv:2306.00738}
}"""

MEMIT = """@inproceedings{meng2023memit,
  title     = {Mass-Editing Memory in a Transformer},
  author    = {Meng, Kevin and Sharma, Arnab Sen and Andonian, Alex J. and Belinkov, Yonatan and Bau, David},
  booktitle = {The Eleventh International Conference on Learning Representations},
  year      = {2023},
  note      = {arXiv:2210.07229}
}"""

EMCID = """@misc{xiong2024emcid,
  title  = {Editing Massive Concepts in Text-to-Image Diffusion Models},
  author = {Xiong, Tianwei and Wu, Yue and Xie, Enze and Wu, Yue and Li, Zhenguo and Liu, Xihui},
  year   = {2024},
  note   = {arXiv:2403.13807}
}"""

DIFFQUICKFIX = """@inproceedings{basu2024diffquickfix,
  title     = {Localizing and Editing Knowledge in Text-to-Image Generative Models},
  author    = {Basu, Samyadeep and Zhao, Nanxuan and Morariu, Vlad I. and Feizi, Soheil and Manjunatha, Varun},
  booktitle = {The Twelfth International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2310.13730}
}"""

ALPHAEDIT = """@inproceedings{fang2025alphaedit,
  title     = {{AlphaEdit}: Null-Space Constrained Knowledge Editing for Language Models},
  author    = {Fang, Junfeng and Jiang, Houcheng and Wang, Kun and Ma, Yunshan and Shi, Jie and Wang, Xiang and
               He, Xiangnan and Chua, Tat-Seng},
  booktitle = {The Thirteenth International Conference on Learning Representations},
  year      = {2025},
  note      = {arXiv:2410.02355}
}"""

TIME = """@inproceedings{orgad2023time,
  title     = {Editing Implicit Assumptions in Text-to-Image Diffusion Models},
  author    = {Orgad, Hadas and Kawar, Bahjat and Belinkov, Yonatan},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
  year      = {2023},
  note      = {arXiv:2303.08084}
}"""

UCE = """@inproceedings{gandikota2024uce,
  title     = {Unified Concept Editing in Diffusion Models},
  author    = {Gandikota, Rohit and Orgad, Hadas and Belinkov, Yonatan and Materzy{\\'n}ska, Joanna and Bau, David},
  booktitle = {Proceedings of the IEEE/CVF Winter Conference on Applications of Computer Vision},
  year      = {2024},
  note      = {arXiv:2308.14761}
}"""

EMBEDIT = """@misc{he2024embedit,
  title  = {Implicit Priors Editing in {Stable Diffusion} via Targeted Token Adjustment},
  author = {He, Feng and Zhang, Chao and Zhao, Zhixue},
  year   = {2024},
  note   = {arXiv:2412.03400}
}"""

SPEED = """@inproceedings{li2026speed,
  title     = {{SPEED}: Scalable, Precise, and Efficient Concept Erasure for Diffusion Models},
  author    = {Li, Ouxiang and Wang, Yuan and Hu, Xinting and Jiang, Houcheng and Liang, Tao and Hao, Yanbin and
               Ma, Guojun and Feng, Fuli},
  booktitle = {The Fourteenth International Conference on Learning Representations},
  year      = {2026},
  note      = {arXiv:2503.07392}
}"""

SOFTWARE = f"""@software{{refact_software,
  title   = {{refact: editing facts in text-to-image models}},
  author  = {{{{The refact developers}}}},
  version = {{{__version__}}},
  year    = {{2026}},
  license = {{Apache-2.0}}
}}"""

PAPERS = {  # FineTune is a baseline of the ReFACT paper (its Appendix G.1)
    "refact": "",
    "memit": MEMIT,
    "emcid": EMCID,
    "diffquickfix": DIFFQUICKFIX,
    "alphaedit": ALPHAEDIT,
    "time": TIME,
    "uce": UCE,
    "speed": SPEED,
    "entrance": UCE,
    "finetune": "",
    "embedit": EMBEDIT,
}


def cite(record: dict) -> str:
    """BibTeX of what made a patch: the ReFACT paper, each method's own paper, and this software.

    record: of a patch, as `refact.record.read_record` gives it; the methods of merged patches are joined by " + " in
    it. An imported LoRA was made by others, so that only the software is named. A method that names no paper is told
    of in a comment, which BibTeX skips. For the methods of this package no torch is imported.
    """
    names = [name for name in record["method"]["name"].split(" + ") if name != "import"]
    papers = [REFACT, *map(_paper, names)] if names else []
    return "\n\n".join(dict.fromkeys([*filter(None, papers), SOFTWARE]))


def _paper(name: str) -> str:
    """The entry of a method by its class's name; "" for one that the ReFACT paper itself describes."""
    if name.lower() in PAPERS:
        return PAPERS[name.lower()]
    cited = [getattr(cls, "citation", "") for cls in METHODS.values() if cls.__name__ == name]
    return (cited and cited[0]) or f"% The method {name} names no paper. Ask the authors of the package it comes from."
