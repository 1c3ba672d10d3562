"""Turn the marks radiologists left in an archive into lesion data sets.

The stages, each a module: ``readers`` (one mark format each) -> ``harvest`` (many files) ->
``lesion`` (marks merged into lesions with boxes) -> ``categorize`` (categories without labels) ->
``writers`` (MONAI datalist, COCO, DeepLesion release, DICOM SR).
"""

__version__ = "0.1.0"
