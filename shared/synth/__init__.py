"""RefShapes: drawn scenes with referring expressions that are unambiguous by construction.

`scenes` draws, `expressions` describes, `refshapes` writes a data set in the official REFER layout. The embedded
models are trained on scenes of the same drawing code from generators with other keys, never on RefShapes itself.
"""
