"""The doctor: reads data before an hour is lost on it, and says what is wrong and what to do.

One pass over the files (`census`) keeps a few numbers per frame and notes what a single frame shows
(`frame`), in one process or in several (`leaf`, `stretches`); judgements on the whole follow:
`agreement` of energies with forces and stresses, `energies` against composition, `duplicates`,
`coverage` of labels and elements. `report` says it.
"""

from mlip.data.checkup.examination import Examination, examine

__all__ = ["Examination", "examine"]
