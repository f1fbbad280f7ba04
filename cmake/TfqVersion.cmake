# The version's one source is tfq/_version.py.
file(READ ${CMAKE_CURRENT_LIST_DIR}/../tfq/_version.py _tfq_version_py)
if(NOT _tfq_version_py MATCHES "__version__ = \"([0-9]+\\.[0-9]+\\.[0-9]+)\"")
  message(FATAL_ERROR "tfq/_version.py: expected __version__ = \"X.Y.Z\"")
endif()
set(TFQ_VERSION ${CMAKE_MATCH_1})
